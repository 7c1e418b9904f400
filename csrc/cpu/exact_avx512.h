// Exact bf16 weights of 4 index and 4 deviation bits, 64 at a time: what no table has, and a row's
// last weights that are no whole piece, go the way of every other layout.
#pragma once

#include "take_piece_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

PHIQUANT_INLINE bool has_pieces(const Layout& layout, Dtype stored) {
  return has_nibbles(layout) && layout.deviation_bits == 4 && stored == Dtype::kBFloat16;
}

// bf16 words in the order of weights to the dtype.
template <Dtype dtype>
PHIQUANT_INLINE void store_words(uint8_t* to, __m512i words) {
  if (dtype == Dtype::kBFloat16) return _mm512_storeu_si512(to, words);
  const __m512i widened = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words));
  _mm512_storeu_si512(to, _mm512_slli_epi32(widened, 16));
  const __m512i rest = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words, 1));
  _mm512_storeu_si512(to + 64, _mm512_slli_epi32(rest, 16));
}

struct ExactConstants {
  PieceConstants piece;
  TakeConstants take;
};

// One piece of a row; returns bytes of which one is not 0 if a remainder is not in its sub-cell.
// 60 instructions but for loads, 77 where groups have 32 weights.
template <Dtype dtype, int group_size>
PHIQUANT_INLINE __m512i decode_piece(const ExactConstants& constants, const SubcellTables& tables,
                                     const PieceScales& scales, int64_t group, const uint8_t* index,
                                     const uint8_t* deviation, BitReader* reader, uint8_t* to) {
  const PieceConstants& piece = constants.piece;
  const PieceCodes codes = read_piece(piece, index, deviation);
  const PieceSubcells cells = piece_subcells<group_size>(piece, tables, scales, group, codes);
  const PieceRests rests = take_piece(constants.take, reader, cells.width);
  const __m512i low = spread<group_size>(scales.low, group);
  const __m512i high = spread<group_size>(scales.high, group);
  // Only at zero do remainders have a high byte, and more floats than a byte counts.
  const __m512i spare =
      _mm512_mask_mov_epi8(cells.spare, _mm512_cmpeq_epi8_mask(rests.high, high), low);
  const __m512i bad =
      _mm512_or_si512(_mm512_subs_epu8(rests.low, spare), _mm512_subs_epu8(rests.high, high));
  constexpr int kXorAnd = 0x28;  // (first ^ second) & third
  const __m512i sign = _mm512_ternarylogic_epi32(
      _mm512_adds_epu8(codes.code, vector_of(piece.to_sign)),
      spread<group_size>(scales.above, group), vector_of(piece.sign), kXorAnd);
  const __m512i signed_high = _mm512_or_si512(rests.high, sign);
  const __m512i less = fill(scales.less[group]);
  const __m512i next_less = group_size < kPiece ? fill(scales.less[group + 1]) : less;
  const __m512i first = _mm512_subs_epu16(_mm512_unpacklo_epi8(cells.low, cells.high), less);
  const __m512i second = _mm512_subs_epu16(_mm512_unpackhi_epi8(cells.low, cells.high), next_less);
  store_words<dtype>(to, _mm512_add_epi16(first, _mm512_unpacklo_epi8(rests.low, signed_high)));
  store_words<dtype>(to + kPiece / 2 * size_of(dtype),
                     _mm512_add_epi16(second, _mm512_unpackhi_epi8(rests.low, signed_high)));
  return bad;
}

// Rows, one after the other. A unit is a piece or a group, whichever is larger.
template <Dtype dtype, int group_size>
class PieceRows {
 public:
  explicit PieceRows(const DecodeTask& task)
      : task_(task),
        curve_(Curve::of(task.layout)),
        edges_(task.layout, curve_),
        tables_(subcell_tables()),
        groups_(groups_of(task.layout)) {
    hide(&constants_);
  }

  Status decode(int64_t row, uint8_t* out) {
    out_ = out;
    first_group_ = row * groups_;
    first_block_ = task_.remainder.first_block + row * blocks_of(task_.layout);
    block_.number = first_block_;
    bad_ = _mm512_setzero_si512();
    Status status = Status::kOk;
    for (int64_t start = 0; start < groups_ && status == Status::kOk; start += kStretch) {
      status = decode_stretch(start, groups_ - start < kStretch ? groups_ - start : kStretch);
    }
    if (status == Status::kOk) status = close_block(task_.remainder, block_);
    if (status != Status::kOk) *task_.bad_block = block_.number;
    return status;
  }

 private:
  static constexpr int kUnit = group_size < kPiece ? kPiece : group_size;
  static constexpr int kGroups = kUnit / group_size;

  PHIQUANT_MEMBER Status decode_stretch(int64_t start, int64_t count) {
    if (!read_words(task_.layout, task_.planes.scale + first_group_ + start, count, &scales_)) {
      return Status::kBadWord;
    }
    rank_scales(scales_, edges_, count, &ranked_);
    constexpr uint64_t kWhole = (uint64_t{1} << kGroups) - 1;
    for (int64_t at = 0; at < count; at += kGroups) {
      const int64_t column = (start + at) * group_size;
      if (column % kBlock == 0) {
        const Status status = turn(column);
        if (status != Status::kOk) return status;
      }
      if ((ranked_.covered >> at & kWhole) == kWhole && column + kUnit <= task_.layout.columns) {
        decode_unit(start, at);
        continue;
      }
      const int64_t end = at + kGroups < count ? at + kGroups : count;
      const Status status = decode_groups(start, at, end);
      if (status != Status::kOk) return status;
    }
    return checked();
  }

  PHIQUANT_MEMBER Status checked() const {
    return _mm512_test_epi8_mask(bad_, bad_) == 0 ? Status::kOk : Status::kBadRemainder;
  }

  // Ends the block before `column`, and begins the one from there on.
  PHIQUANT_MEMBER Status turn(int64_t column) {
    const Status status = checked();
    return status == Status::kOk ? turn_block(task_.remainder, first_block_, column, &block_)
                                 : status;
  }

  // The unit that begins with group number `at` of the stretch from group `start` on.
  PHIQUANT_MEMBER void decode_unit(int64_t start, int64_t at) {
    const int64_t byte = (first_group_ + start + at) * (group_size / 2);
    uint8_t* to = out_ + (start + at) * group_size * size_of(dtype);
    for (int i = 0; i < kUnit; i += kPiece) {
      const __m512i bad = decode_piece<dtype, group_size>(
          constants_, tables_, ranked_, at, task_.planes.index + byte + i / 2,
          task_.planes.deviation + byte + i / 2, &block_.reader, to + i * size_of(dtype));
      bad_ = _mm512_or_si512(bad_, bad);
    }
  }

  // The groups from `at` until `end`, one after the other.
  Status decode_groups(int64_t start, int64_t at, int64_t end) {
    for (; at < end; at++) {
      const int64_t column = (start + at) * group_size, rest = task_.layout.columns - column;
      const ExactGroup group{first_group_ + start + at, column,
                             static_cast<int32_t>(rest < group_size ? rest : group_size),
                             scales_.scale[at], scales_.bend[at]};
      const Status status = decode_exact_group<Dtype::kBFloat16>(
          task_, curve_, group, &block_.reader, out_ + column * size_of(dtype));
      if (status != Status::kOk) return status;
    }
    return Status::kOk;
  }

  const DecodeTask& task_;
  const Curve curve_;
  const FirstEdges edges_;
  const SubcellTables& tables_;
  const int64_t groups_;
  const ExactConstants constants_;
  Scales scales_;
  PieceScales ranked_;
  Block<Dtype::kBFloat16> block_;
  __m512i bad_;
  uint8_t* out_;
  int64_t first_group_;
  int64_t first_block_;
};

template <Dtype dtype, int group_size>
static Status decode_pieces(const DecodeTask& task, int64_t begin, int64_t end) {
  PieceRows<dtype, group_size> rows(task);
  const int64_t stride = task.stride * size_of(dtype);
  for (int64_t i = begin; i < end; i++) {
    const Status status = rows.decode(task.rows == nullptr ? i : task.rows[i],
                                      static_cast<uint8_t*>(task.out) + i * stride);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

template <Dtype dtype>
PHIQUANT_INLINE Status decode_pieces(const DecodeTask& task, int64_t begin, int64_t end) {
  return task.layout.group_size == 32   ? decode_pieces<dtype, 32>(task, begin, end)
         : task.layout.group_size == 64 ? decode_pieces<dtype, 64>(task, begin, end)
                                        : decode_pieces<dtype, 128>(task, begin, end);
}

static Status fast_decode_any(const DecodeTask& task, int64_t begin, int64_t end) {
  const bool pieces = task.remainder.payload != nullptr && task.dtype != Dtype::kFloat16 &&
                      has_pieces(task.layout, task.remainder.stored);
  if (!pieces) return decode(task, begin, end);
  return task.dtype == Dtype::kFloat32 ? decode_pieces<Dtype::kFloat32>(task, begin, end)
                                       : decode_pieces<Dtype::kBFloat16>(task, begin, end);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
