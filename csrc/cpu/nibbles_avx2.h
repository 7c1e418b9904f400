// Hooks of nibbles.h for AVX2.
#pragma once

#include "bfloat16.h"
#include "decode.h"

namespace phiquant::cpu::PHIQUANT_ISA {

typedef uint8_t bytes __attribute__((vector_size(32)));

inline constexpr bool kByteTables = true;

PHIQUANT_INLINE __m256i load_twice(const uint8_t* plane) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(plane)));
}

// Codes of a chunk: even weights in the lower half, odd weights in the upper. 2 or 5 instructions.
template <int deviation_bits>
PHIQUANT_INLINE bytes load_codes(const uint8_t* index, const uint8_t* deviation, int) {
  const __m256i upper_half = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
  const __m256i low_nibbles = _mm256_set1_epi8(15);
  const __m256i indices = load_twice(index);
  if (deviation_bits == 0) {
    return (bytes)_mm256_and_si256(_mm256_srlv_epi32(indices, upper_half), low_nibbles);
  }
  const __m256i lower_half = _mm256_setr_epi32(4, 4, 4, 4, 0, 0, 0, 0);
  const __m256i deviations = _mm256_srlv_epi32(load_twice(deviation), upper_half);
  return (bytes)_mm256_or_si256(
      _mm256_and_si256(low_nibbles, deviations),
      _mm256_andnot_si256(low_nibbles, _mm256_sllv_epi32(indices, lower_half)));
}

PHIQUANT_INLINE bytes look_up_bytes(const uint8_t* table, bytes codes) {
  return (bytes)_mm256_shuffle_epi8(load_twice(table), (__m256i)codes);
}
PHIQUANT_INLINE bytes zip_low(bytes a, bytes b) {
  return (bytes)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b);
}
PHIQUANT_INLINE bytes zip_high(bytes a, bytes b) {
  return (bytes)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b);
}
PHIQUANT_INLINE bytes zip_low_pairs(bytes a, bytes b) {
  return (bytes)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b);
}
PHIQUANT_INLINE bytes zip_high_pairs(bytes a, bytes b) {
  return (bytes)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b);
}

// Eight weights, given as nibbles.h orders them, to `to` in their own order.
template <Dtype dtype>
PHIQUANT_INLINE void store_eight(uint8_t* to, const vf* weights) {
  const vf weight = *weights;
  if (dtype == Dtype::kBFloat16) {
    const __m256i bits = (__m256i)rounded_bfloat16s(weight);
    const __m128i even = _mm_srli_epi32(_mm256_castsi256_si128(bits), 16);
    store(to, _mm_blend_epi16(even, _mm256_extracti128_si256(bits, 1), 0xAA));
    return;
  }
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const vf ordered = _mm256_permutevar8x32_ps(weight, order);
  if (dtype == Dtype::kFloat32) {
    store(to, ordered);
  } else {
    floats_to_halves(reinterpret_cast<uint16_t*>(to), saturate(ordered, 65504.0f));
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
