// Remainders of bf16 weights of 4 index and 4 deviation bits, 64 at a time, as exact_avx512.h reads
// them.
#pragma once

#include "exact_avx512.h"
#include "exact_encode.h"
#include "put_words_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// What is left of a piece: ranks after their sub-cells' first floats, in the order of weights.
struct PieceRest {
  __m512i first, second;  // words; 0 where astray
  uint64_t astray;        // a bit a weight: not one of the sub-cell's floats
};

// 64 weights, as they are stored, and their sub-cells. 23 instructions.
template <int group_size>
PHIQUANT_INLINE PieceRest rest_of_piece(const PieceConstants& constants, const PieceScales& scales,
                                        int64_t group, const PieceCodes& codes,
                                        const PieceSubcells& cells, const uint8_t* weights) {
  constexpr int kXorAnd = 0x28;  // (first ^ second) & third
  const __m512i zero = _mm512_setzero_si512();
  const __mmask64 at_zero = _mm512_testn_epi8_mask(codes.number, codes.number);
  const __m512i low =
      _mm512_mask_mov_epi8(cells.spare, at_zero, spread<group_size>(scales.low, group));
  const __m512i high = _mm512_maskz_mov_epi8(at_zero, spread<group_size>(scales.high, group));
  const __m512i sign = _mm512_ternarylogic_epi32(
      _mm512_adds_epu8(codes.code, vector_of(constants.to_sign)),
      spread<group_size>(scales.above, group), vector_of(constants.sign), kXorAnd);
  // A weight of the other sign has a rest of 2^15 less the rank, and ranks are below 0x4400.
  const auto rest_of = [&](const uint8_t* from, __m512i signs, __m512i ranks, uint32_t less) {
    const __m512i turned = _mm512_xor_si512(_mm512_loadu_si512(from), signs);
    return _mm512_sub_epi16(turned, _mm512_subs_epu16(ranks, fill(less)));
  };
  const __m512i first = rest_of(weights, _mm512_unpacklo_epi8(zero, sign),
                                _mm512_unpacklo_epi8(cells.low, cells.high), scales.less[group]);
  const __m512i second =
      rest_of(weights + 64, _mm512_unpackhi_epi8(zero, sign),
              _mm512_unpackhi_epi8(cells.low, cells.high), scales.less[group + (group_size < 64)]);
  const __mmask32 good = _mm512_cmple_epu16_mask(first, _mm512_unpacklo_epi8(low, high));
  const __mmask32 too = _mm512_cmple_epu16_mask(second, _mm512_unpackhi_epi8(low, high));
  return {_mm512_maskz_mov_epi16(good, first), _mm512_maskz_mov_epi16(too, second),
          ~(uint64_t{too} << 32 | good)};
}

// Rows of a weight: what measuring and writing them share.
template <int group_size>
class RemainderRows {
 public:
  explicit RemainderRows(const RemainderTask& task)
      : task_(task),
        curve_(Curve::of(task.layout)),
        edges_(task.layout, curve_),
        tables_(subcell_tables()) {
    hide(&constants_);
  }

  Status measure(int64_t row) {
    int64_t* size = task_.sizes + row * blocks_of(task_.layout) - 1;
    int64_t astray = 0;
    __m512i bits = _mm512_setzero_si512();
    vi few{};
    const auto end_block = [&] {
      *size = (_mm512_reduce_add_epi64(bits) + sum_integers(few) + 7) / 8;
      bits = _mm512_setzero_si512();
      few = vi{};
    };
    const Status status = for_parts(
        row,
        [&](int64_t column) {
          if (column > 0) end_block();
          size++;
        },
        [&](int64_t, const PieceSubcells& cells, const PieceRest& rest) {
          bits = _mm512_add_epi64(bits, _mm512_sad_epu8(cells.width, _mm512_setzero_si512()));
          astray += __builtin_popcountll(rest.astray);
        },
        [&](int64_t, const Rest& rest, vi width) {
          few += width;
          astray -= sum_integers(rest.astray);
        });
    if (status == Status::kOk) end_block();
    task_.astray[row] = astray;
    return status;
  }

  Status write(int64_t row) {
    const int64_t* begin = task_.begins + row * blocks_of(task_.layout) - 1;
    int64_t* exception = task_.exceptions + 2 * task_.first_exception[row];
    const auto add_exceptions = [&](int64_t column, uint64_t astray) {
      for (; astray != 0; astray &= astray - 1) {
        const int64_t place = row * task_.layout.columns + column + __builtin_ctzll(astray);
        *exception++ = place;
        *exception++ = static_cast<const uint16_t*>(task_.weight)[place];
      }
    };
    BlockWriter writer;
    writer.begin();
    const Status status = for_parts(
        row,
        [&](int64_t column) {
          if (column > 0) writer.copy_to(task_.payload + *begin);
          begin++;
          writer.begin();
        },
        [&](int64_t column, const PieceSubcells& cells, const PieceRest& rest) {
          const __m512i zero = _mm512_setzero_si512();
          put_words(rest.first, _mm512_unpacklo_epi8(cells.width, zero), &writer.words);
          put_words(rest.second, _mm512_unpackhi_epi8(cells.width, zero), &writer.words);
          if (rest.astray != 0) add_exceptions(column, rest.astray);
        },
        [&](int64_t column, const Rest& rest, vi width) {
          alignas(64) int32_t widths[kLanes], values[kLanes];
          store(widths, width);
          store(values, rest.rest);
          for (int i = 0; i < kLanes; i++) {
            writer.words.put(static_cast<uint32_t>(values[i]), widths[i]);
          }
          add_exceptions(column, _mm512_movepi32_mask((__m512i)rest.astray));
        });
    if (status == Status::kOk) writer.copy_to(task_.payload + *begin);
    return status;
  }

 private:
  static constexpr int kUnit = group_size < kPiece ? kPiece : group_size;
  static constexpr int kGroups = kUnit / group_size;

  // on_block(column) where one begins; on_piece(column, sub-cells, rest) where tables have them;
  // on_vector(column, rest, width) for 16 weights elsewhere.
  template <class OnBlock, class OnPiece, class OnVector>
  PHIQUANT_MEMBER Status for_parts(int64_t row, OnBlock on_block, OnPiece on_piece,
                                   OnVector on_vector) {
    const Layout& layout = task_.layout;
    const int64_t groups = groups_of(layout);
    constexpr uint64_t kAll = (uint64_t{1} << kGroups) - 1;
    for (int64_t start = 0; start < groups; start += kStretch) {
      const int64_t count = groups - start < kStretch ? groups - start : kStretch;
      const int16_t* words = task_.planes.scale + row * groups + start;
      if (!read_words(layout, words, count, &scales_)) return Status::kBadWord;
      rank_scales(scales_, edges_, count, &ranked_);
      for (int64_t at = 0; at < count; at += kGroups) {
        const int64_t column = (start + at) * group_size, group = row * groups + start + at;
        if (column % kBlock == 0) on_block(column);
        if ((ranked_.covered >> at & kAll) == kAll && column + kUnit <= layout.columns) {
          for (int i = 0; i < kUnit; i += kPiece) visit_piece(row, group, at, column + i, on_piece);
        } else {
          const int64_t end = at + kGroups < count ? at + kGroups : count;
          for (int64_t i = at; i < end; i++) visit_group(row, group + i - at, i, on_vector);
        }
      }
    }
    return Status::kOk;
  }

  template <class OnPiece>
  PHIQUANT_MEMBER void visit_piece(int64_t row, int64_t group, int64_t at, int64_t column,
                                   OnPiece on_piece) {
    const int64_t byte = group * (group_size / 2) + column % kUnit / 2;
    const uint8_t* weights =
        static_cast<const uint8_t*>(task_.weight) + (row * task_.layout.columns + column) * 2;
    const PieceCodes codes =
        read_piece(constants_, task_.planes.index + byte, task_.planes.deviation + byte);
    const PieceSubcells cells = piece_subcells<group_size>(constants_, tables_, ranked_, at, codes);
    on_piece(column, cells,
             rest_of_piece<group_size>(constants_, ranked_, at, codes, cells, weights));
  }

  template <class OnVector>
  PHIQUANT_MEMBER void visit_group(int64_t row, int64_t number, int64_t at, OnVector on_vector) {
    const int64_t column = (number - row * groups_of(task_.layout)) * group_size;
    const int64_t rest = task_.layout.columns - column;
    const ExactGroup group{number, column,
                           static_cast<int32_t>(rest < group_size ? rest : group_size),
                           scales_.scale[at], scales_.bend[at]};
    for_rests<Dtype::kBFloat16>(task_, curve_, row, group, [&](int from, const Rest& of, vi width) {
      on_vector(column + from, of, width);
    });
  }

  const RemainderTask& task_;
  const Curve curve_;
  const FirstEdges edges_;
  const SubcellTables& tables_;
  const PieceConstants constants_;
  Scales scales_;
  PieceScales ranked_;
};

template <int group_size, bool is_written>
static Status encode_pieces(const RemainderTask& task, int64_t begin, int64_t end) {
  RemainderRows<group_size> rows(task);
  for (int64_t row = begin; row < end; row++) {
    const Status status = is_written ? rows.write(row) : rows.measure(row);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

template <bool is_written>
PHIQUANT_INLINE Status encode_pieces(const RemainderTask& task, int64_t begin, int64_t end) {
  return task.layout.group_size == 32   ? encode_pieces<32, is_written>(task, begin, end)
         : task.layout.group_size == 64 ? encode_pieces<64, is_written>(task, begin, end)
                                        : encode_pieces<128, is_written>(task, begin, end);
}

static Status fast_measure(const RemainderTask& task, int64_t begin, int64_t end) {
  return has_pieces(task.layout, task.stored) ? encode_pieces<false>(task, begin, end)
                                              : measure(task, begin, end);
}

static Status fast_write(const RemainderTask& task, int64_t begin, int64_t end) {
  return has_pieces(task.layout, task.stored) ? encode_pieces<true>(task, begin, end)
                                              : write(task, begin, end);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
