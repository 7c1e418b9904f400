// Rows of x as integers, in the order of the operand they meet: [bytes of all columns][a float for
// every group], each in whole vectors.
//
// int16 has 14 bits and a sign, and a power of two for every group of columns, so it is what bf16
// is but for numbers below a 64th of their group's largest. int8 has one factor for a row.
#pragma once

#include "operands_avx512.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr int kBits16 = 14;  // sums of 4 products of 16 bits by 14 fit an int32
// Dot products of int8 take one factor unsigned: levels are moved up by 128, which adds 128 times
// the sum of a group's x.
inline constexpr int kUp = 128;
inline constexpr uint32_t kLeastOfX = 67;  // 2^-60: below it, factors could vanish

PHIQUANT_INLINE int64_t value_bytes(const Layout& layout, bool int8) {
  return groups_of(layout) * layout.group_size * (int8 ? 1 : 2);
}

// Of one row.
PHIQUANT_INLINE int64_t integer_bytes(const Layout& layout, bool int8) {
  return value_bytes(layout, int8) + (groups_of(layout) + 15) / 16 * 16 * int64_t{sizeof(float)};
}

PHIQUANT_INLINE const float* group_floats(const Layout& layout, bool int8, const uint8_t* x) {
  return reinterpret_cast<const float*>(x + value_bytes(layout, int8));
}

// The same, to be filled; 0 beyond the last group, in its vector.
PHIQUANT_INLINE float* new_group_floats(const Layout& layout, bool int8, uint8_t* x) {
  float* floats = reinterpret_cast<float*>(x + value_bytes(layout, int8));
  for (int64_t i = groups_of(layout); i % 16 != 0; i++) floats[i] = 0;
  return floats;
}

// 32 bf16 times 2^power to int16, to nearest even.
PHIQUANT_INLINE __m512i to_int16(__m512i bits, float power) {
  const __m512 powers = _mm512_set1_ps(power);
  __m256i halves[2] = {_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64(bits, 1)};
  for (__m256i& half : halves) {
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
    const __m512 scaled = _mm512_scalef_ps(_mm512_castsi512_ps(wide), powers);
    half = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(scaled));
  }
  return _mm512_inserti64x4(_mm512_castsi256_si512(halves[0]), halves[1], 1);
}

// A row of bf16 to int16; false if it is not finite, or a group of it is too small for a factor.
PHIQUANT_INLINE bool row_to_int16(const Layout& layout, const Order& order, const uint16_t* row,
                                  uint8_t* to) {
  const __m512i places[2] = {_mm512_load_si512(order.place), _mm512_load_si512(order.place + 32)};
  const int64_t columns = layout.columns, size = layout.group_size;
  float* factors = new_group_floats(layout, false, to);
  for (int64_t group = 0; group < groups_of(layout); group++) {
    const int64_t begin = group * size, end = begin + size < columns ? begin + size : columns;
    const uint32_t largest = largest_bits(row, begin, end), exponent = largest >> 7;
    if (exponent == 0xFF || (largest != 0 && exponent < kLeastOfX)) return false;
    const int power = largest == 0 ? 0 : kBits16 - 1 + 127 - static_cast<int>(exponent);
    factors[group] = largest == 0 ? 0 : power_of_two(-power);
    for (int64_t column = begin; column < begin + size; column += kPiece) {
      __m512i part[2];
      load_piece(row, column, end, part);
      for (const __m512i place : places) {
        const __m512i ordered = _mm512_permutex2var_epi16(part[0], place, part[1]);
        _mm512_store_si512(to, to_int16(ordered, static_cast<float>(power)));
        to += kPiece;
      }
    }
  }
  return true;
}

// A row of bf16 to int8, the factor of its products, and -kUp times the sum of every group.
PHIQUANT_INLINE void row_to_int8(const Layout& layout, const Order& order, const uint16_t* row,
                                 uint8_t* to, float* factor) {
  const __m512i places = places_of(order), ones = _mm512_set1_epi8(1);
  const int64_t columns = layout.columns, size = layout.group_size;
  const float reciprocal = int8_factor(row, columns, factor);
  float* raised = new_group_floats(layout, true, to);
  for (int64_t group = 0; group < groups_of(layout); group++) {
    __m512i sums = _mm512_setzero_si512();
    for (int64_t column = group * size; column < (group + 1) * size; column += kPiece) {
      const __m512i piece = int8_piece(row, column, columns, places, reciprocal);
      sums = _mm512_dpbusd_epi32(sums, ones, piece);
      _mm512_store_si512(to + column, piece);
    }
    raised[group] = static_cast<float>(-kUp * _mm512_reduce_add_epi32(sums));
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
