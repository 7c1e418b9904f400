// Pieces of 64 weights: their codes and sub-cells, a byte each. Needs AVX-512 VBMI.
#pragma once

#include "nibbles_avx512.h"
#include "subcell_table.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Bytes lie so that interleaving two vectors of them gives words in the order of weights: chunks of
// 8 weights are in the order 0 4 1 5 2 6 3 7.
constexpr int place_of_chunk(int chunk) { return chunk < 4 ? 2 * chunk : 2 * chunk - 7; }
constexpr int place_in_piece(int weight) { return place_of_chunk(weight / 8) * 8 + weight % 8; }
constexpr int weight_at(int place) { return (place / 8 % 2 * 4 + place / 16) * 8 + place % 8; }

struct Bytes {
  alignas(64) uint8_t at[64];
};
PHIQUANT_INLINE __m512i vector_of(const Bytes& bytes) { return _mm512_load_si512(bytes.at); }

template <class Of>
constexpr Bytes bytes_of(Of of) {
  Bytes bytes{};
  for (int i = 0; i < 64; i++) bytes.at[i] = static_cast<uint8_t>(of(i));
  return bytes;
}

// Both halves of a piece in the order of weights: the second one's chunks are at odd places.
inline constexpr uint64_t kSecondHalf = 0xFF00FF00FF00FF00;

// What reading a piece needs, in memory and `hidden`: a compiler that sees the values makes them
// anew for every piece, each through a general register and the port that permutes.
struct PieceConstants {
  // From 32 bytes, twice, to nibbles: even weights in the lower half, odd ones in the upper.
  Bytes left = bytes_of([](int i) { return i % 4 == 0 && i < 32 ? 4 : 0; });
  Bytes right = bytes_of([](int i) { return i % 4 == 0 && i >= 32 ? 4 : 0; });
  Bytes low_nibble = bytes_of([](int) { return 15; });
  Bytes order =
      bytes_of([](int place) { return weight_at(place) / 2 + weight_at(place) % 2 * 32; });
  Bytes zero_code = bytes_of([](int) { return 120; });
  Bytes code_below = bytes_of([](int) { return 119; });
  Bytes sixth_bit = bytes_of([](int) { return 64; });
  Bytes to_sign = bytes_of([](int) { return 8; });  // from the first code above zero to 128
  Bytes sign = bytes_of([](int) { return 128; });
};

template <class T>
PHIQUANT_INLINE void hide(T* value) {
  asm volatile("" : : "r"(value) : "memory");
}

struct PieceCodes {
  __m512i code;
  __m512i number;   // from zero outwards
  __mmask64 upper;  // number has bit 6,
  __mmask64 tail;   // bit 7
};

PHIQUANT_INLINE PieceCodes read_piece(const PieceConstants& constants, const uint8_t* index,
                                      const uint8_t* deviation) {
  constexpr int kSelect = 0xCA;  // first ? second : third, bit by bit
  const __m512i high = _mm512_sllv_epi32(load_chunk<64>(index), vector_of(constants.left));
  const __m512i low = _mm512_srlv_epi32(load_chunk<64>(deviation), vector_of(constants.right));
  const __m512i code = _mm512_permutexvar_epi8(
      vector_of(constants.order),
      _mm512_ternarylogic_epi32(vector_of(constants.low_nibble), low, high, kSelect));
  const __m512i number = _mm512_or_si512(_mm512_subs_epu8(code, vector_of(constants.zero_code)),
                                         _mm512_subs_epu8(vector_of(constants.code_below), code));
  return {code, number, _mm512_test_epi8_mask(number, vector_of(constants.sixth_bit)),
          _mm512_movepi8_mask(number)};
}

PHIQUANT_INLINE __mmask64 below_zero(const PieceConstants& constants, const PieceCodes& codes) {
  return _mm512_cmplt_epu8_mask(codes.code, vector_of(constants.zero_code));
}

struct PieceSubcells {
  __m512i low, high, width, spare;  // as in SubcellTable
};

PHIQUANT_INLINE __m512i look_up(const SubcellTable::Column& column, const SubcellTable::Tail& tail,
                                const PieceCodes& codes, __mmask64 wanted, __m512i before) {
  const __m512i lower = _mm512_load_si512(column.of), upper = _mm512_load_si512(column.of + 64);
  const __m512i last = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)tail.of));
  const bool all = wanted == ~__mmask64{0};
  __m512i found = all ? _mm512_permutexvar_epi8(codes.number, lower)
                      : _mm512_mask_permutexvar_epi8(before, wanted, codes.number, lower);
  found = _mm512_mask_permutexvar_epi8(found, codes.upper & wanted, codes.number, upper);
  return _mm512_mask_permutexvar_epi8(found, codes.tail & wanted, codes.number, last);
}

// Into the wanted bytes of `cells`.
PHIQUANT_INLINE void look_up(const SubcellTable& table, const PieceCodes& codes, __mmask64 wanted,
                             PieceSubcells* cells) {
  cells->low = look_up(table.low, table.low_tail, codes, wanted, cells->low);
  cells->high = look_up(table.high, table.high_tail, codes, wanted, cells->high);
  cells->width = look_up(table.width, table.width_tail, codes, wanted, cells->width);
  cells->spare = look_up(table.spare, table.spare_tail, codes, wanted, cells->spare);
}

// What the scales of a stretch mean for ranks. Bytes and words are repeated to 32 bits: those a
// vector is filled with while it is loaded.
struct PieceScales {
  alignas(64) uint32_t table[kStretch];
  alignas(64) uint32_t less[kStretch];   // words: to be taken from every rank but zero
  alignas(64) uint32_t low[kStretch];    // bytes of how many floats follow zero
  alignas(64) uint32_t high[kStretch];   // in its sub-cell
  alignas(64) uint32_t above[kStretch];  // sign bits where the scale is positive
  uint64_t covered;                      // a bit a group: the tables have it
};

// The upper edges of the sub-cells at zero for a scale of 1, by bends.
struct FirstEdges {
  alignas(64) float edge[16];

  PHIQUANT_MEMBER FirstEdges(const Layout& layout, const Curve& curve) : edge{} {
    for (int i = 0; i < kBendCount; i++) {
      const Steps steps = Steps::of(layout, curve.line[i], curve.cubic[i]);
      edge[i] = steps.cubic + steps.line;
    }
  }
};

PHIQUANT_INLINE void rank_scales(const Scales& scales, const FirstEdges& first, int64_t count,
                                 PieceScales* out) {
  out->covered = 0;
  for (int i = 0; i < count; i += kLanes) {
    const vi bits = load<vi>(scales.scale + i), bend = load<vi>(scales.bend + i);
    const vi exponent = bits >> 23 & 255;
    const vu lower = (vu)(kTableExponent - exponent);
    const vf edge = (vf)_mm512_permutexvar_ps((__m512i)bend, load<__m512>(first.edge));
    const vu spare = (vu)(edge * absolute((vf)bits)) >> 16;
    store(out->table + i, bend << 7 | (bits >> 16 & 127));
    store(out->less + i, lower << 7 | lower << 23);
    store(out->low + i, (spare & 255) * 0x01010101u);
    store(out->high + i, (spare >> 8) * 0x01010101u);
    store(out->above + i, (vi)(bits >= 0) & static_cast<int32_t>(0x80808080));
    const vi outside = (exponent < kLeastExponent) | (exponent > kTableExponent);
    out->covered |= uint64_t{_mm512_movepi32_mask((__m512i)~outside)} << i;
  }
}

template <class T>
PHIQUANT_INLINE __m512i fill(T value) {
  return _mm512_set1_epi32(static_cast<int32_t>(value));
}

// The vector of a piece whose groups begin with number `group` of the stretch.
template <int group_size>
PHIQUANT_INLINE __m512i spread(const uint32_t* of, int64_t group) {
  const __m512i first = fill(of[group]);
  if (group_size >= kPiece) return first;
  return _mm512_mask_blend_epi8(kSecondHalf, first, fill(of[group + 1]));
}

// The sub-cells of a piece.
template <int group_size>
PHIQUANT_INLINE PieceSubcells piece_subcells(const PieceConstants& constants,
                                             const SubcellTables& tables, const PieceScales& scales,
                                             int64_t group, const PieceCodes& codes) {
  PieceSubcells cells{};
  for (int i = 0; i < (group_size < kPiece ? 2 : 1); i++) {
    const uint32_t table = scales.table[group + i], second = tables.second[table];
    const __mmask64 wanted = i == 0 ? ~__mmask64{0} : kSecondHalf;
    look_up(tables.table[table], codes, wanted, &cells);
    if (second == 0) [[likely]]
      continue;
    const __mmask64 mine = group_size >= kPiece ? wanted : i == 0 ? ~kSecondHalf : kSecondHalf;
    look_up(tables.table[second], codes, below_zero(constants, codes) & mine, &cells);
  }
  return cells;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
