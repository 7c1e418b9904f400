// Groups of codes to operands of the matrix unit: levels without their scale, rounded to bf16 (or
// to int8), in the order in which they come out of the planes. The rows of x follow that order.
//
// Instructions for 64 weights: 6 for indices (a widening load, two look-ups, a shift, two stores),
// 20 with deviations, 4 for int8 (a load, a shift, a look-up, a store).
#pragma once

#include "amx_tiles.h"
#include "operands_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kZeroCode = 120;   // of 4 + 4 bits: the first sub-cell above zero
inline constexpr int kPositions = 136;  // sub-cells above zero; below it there are fewer

// Tables of all bends; a bend's begin at `table(bend)`.
template <Operand operand>
struct Levels;

template <>
struct Levels<Operand::kIndex> {
  static constexpr int kBytes = 64;
  alignas(64) uint16_t level[kBendCount][32];  // 16 levels, twice: look-ups take 5 bits

  PHIQUANT_MEMBER explicit Levels(const Curve& curve) {
    for (int bend = 0; bend < kBendCount; bend++) {
      for (int i = 0; i < 32; i++) {
        level[bend][i] = to_bfloat16(level_at(curve, bend, static_cast<float>(i % 16 - 7)));
      }
    }
  }
  PHIQUANT_MEMBER const uint8_t* tables() const { return reinterpret_cast<const uint8_t*>(level); }
};

template <>
struct Levels<Operand::kInt8> {
  static constexpr int kBytes = 64;
  alignas(64) int8_t level[kBendCount][64];  // 16 levels, four times: look-ups take 6 bits

  PHIQUANT_MEMBER explicit Levels(const Curve& curve) {
    for (int bend = 0; bend < kBendCount; bend++) {
      for (int i = 0; i < 64; i++) {
        const float value = level_at(curve, bend, static_cast<float>(i % 16 - 7)) * kInt8Levels;
        level[bend][i] = static_cast<int8_t>(value < 0 ? value - 0.5f : value + 0.5f);
      }
    }
  }
  PHIQUANT_MEMBER const uint8_t* tables() const { return reinterpret_cast<const uint8_t*>(level); }
};

// Magnitudes by the number of the sub-cell from zero outwards: the grid is odd.
template <>
struct Levels<Operand::kPosition> {
  static constexpr int kBytes = 384;
  struct Bend {
    alignas(64) uint8_t low[128], high[128], far_low[64], far_high[64];  // far: 128 and above
  };
  Bend bends[kBendCount];

  PHIQUANT_MEMBER explicit Levels(const Curve& curve) {
    static_assert(sizeof(Bend) == kBytes);
    for (int bend = 0; bend < kBendCount; bend++) {
      Bend& table = bends[bend];
      for (int i = 0; i < 128 + 64; i++) {
        const float p = (static_cast<float>(i < kPositions ? i : 0) + 0.5f) * 0x1p-4f;
        const uint16_t bits = to_bfloat16(level_at(curve, bend, p));
        (i < 128 ? table.low[i] : table.far_low[i - 128]) = static_cast<uint8_t>(bits);
        (i < 128 ? table.high[i] : table.far_high[i - 128]) = static_cast<uint8_t>(bits >> 8);
      }
    }
  }
  PHIQUANT_MEMBER const uint8_t* tables() const { return reinterpret_cast<const uint8_t*>(bends); }
};

// One group of one row of weights to `to`, the row's line in the group's first tile.
template <Operand operand, int group_size>
struct Unpack;

template <int group_size>
struct Unpack<Operand::kIndex, group_size> {
  static constexpr int kTiles = group_size / 32;

  static PHIQUANT_MEMBER void run(const uint8_t* index, const uint8_t*, const uint8_t* table,
                                  uint8_t* to) {
    const __m512i levels = _mm512_load_si512(table);
    if constexpr (group_size == 32) {
      const __m256i words = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)index));
      const __m256i few = _mm512_castsi512_si256(levels);
      _mm256_store_si256((__m256i*)to, _mm256_permutexvar_epi16(words, few));
      _mm256_store_si256((__m256i*)(to + 32),
                         _mm256_permutexvar_epi16(_mm256_srli_epi16(words, 4), few));
      return;
    }
    for (int at = 0; at < group_size; at += kPiece) {
      const __m512i words =
          _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(index + at / 2)));
      uint8_t* tiles = to + at / 32 * kTileBytes;
      _mm512_store_si512(tiles, _mm512_permutexvar_epi16(words, levels));
      _mm512_store_si512(tiles + kTileBytes,
                         _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), levels));
    }
  }
};

template <int group_size>
struct Unpack<Operand::kPosition, group_size> {
  static constexpr int kTiles = group_size / 32;
  static constexpr int kChunk = group_size < kPiece ? group_size : kPiece;

  static PHIQUANT_MEMBER void run(const uint8_t* index, const uint8_t* deviation,
                                  const uint8_t* table, uint8_t* to) {
    const auto part = [&](int i) { return _mm512_load_si512(table + 64 * i); };
    for (int at = 0; at < group_size; at += kChunk) {
      const __m512i codes = join_codes<4, kChunk>(index + at / 2, deviation + at / 2);
      const __mmask64 below = _mm512_cmplt_epu8_mask(codes, _mm512_set1_epi8(kZeroCode));
      __m512i number = _mm512_sub_epi8(codes, _mm512_set1_epi8(kZeroCode));
      number = _mm512_mask_sub_epi8(number, below, _mm512_set1_epi8(kZeroCode - 1), codes);
      const __mmask64 far = _mm512_movepi8_mask(number);
      __m512i low = _mm512_permutex2var_epi8(part(0), number, part(1));
      __m512i high = _mm512_permutex2var_epi8(part(2), number, part(3));
      low = _mm512_mask_permutexvar_epi8(low, far, number, part(4));
      high = _mm512_mask_permutexvar_epi8(high, far, number, part(5));
      high = _mm512_mask_sub_epi8(high, below, high, _mm512_set1_epi8(-128));
      const __m512i first = _mm512_unpacklo_epi8(low, high);
      const __m512i second = _mm512_unpackhi_epi8(low, high);
      uint8_t* tiles = to + at / 32 * kTileBytes;
      if constexpr (group_size == 32) {
        // Every code is there twice: even ones in 128-bit lanes 0 and 1, odd ones in 2 and 3.
        _mm512_store_si512(tiles, _mm512_mask_blend_epi64(0xCC, first, second));
      } else {
        _mm512_store_si512(tiles, first);
        _mm512_store_si512(tiles + kTileBytes, second);
      }
    }
  }
};

template <int group_size>
struct Unpack<Operand::kInt8, group_size> {
  static constexpr int kTiles = group_size / 64;

  static PHIQUANT_MEMBER void run(const uint8_t* index, const uint8_t*, const uint8_t* table,
                                  uint8_t* to) {
    const __m512i upper_half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
    const __m512i levels = _mm512_load_si512(table);
    for (int at = 0; at < group_size; at += kPiece) {
      const __m512i codes = _mm512_srlv_epi32(load_chunk<kPiece>(index + at / 2), upper_half);
      _mm512_store_si512(to + at / 64 * kTileBytes, _mm512_permutexvar_epi8(codes, levels));
    }
  }
};

}  // namespace phiquant::cpu::PHIQUANT_ISA
