// Hooks of vector.h for AVX-512 (F, BW, CD, DQ, VL, VBMI, VNNI).
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace phiquant::cpu::PHIQUANT_ISA {

PHIQUANT_INLINE vf multiply_add(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
PHIQUANT_INLINE vf minimum(vf a, vf b) { return _mm512_min_ps(a, b); }
PHIQUANT_INLINE vf maximum(vf a, vf b) { return _mm512_max_ps(a, b); }
PHIQUANT_INLINE bool any(vi mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
PHIQUANT_INLINE uint32_t lanes_of(vi mask) { return _mm512_movepi32_mask((__m512i)mask); }
PHIQUANT_INLINE vf larger_size(vf a, vf b) { return _mm512_range_ps(a, b, 0xB); }
PHIQUANT_INLINE uint32_t lanes_above(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
// How far a number is above the nearest whole one.
PHIQUANT_INLINE vf from_nearest(vf number) {
  return _mm512_reduce_ps(number, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
PHIQUANT_INLINE vi bit_length(vi number) { return 32 - (vi)_mm512_lzcnt_epi32((__m512i)number); }
PHIQUANT_INLINE vf lookup(const float* table, vi place) {
  return _mm512_permutex2var_ps(load<vf>(table), (__m512i)place, load<vf>(table + 16));
}
PHIQUANT_INLINE vi widen(const uint8_t* from) {
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
PHIQUANT_INLINE vi widen(const uint16_t* from) {
  return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
// 16 bits each of `count` lanes, up to all of them; `rest` beyond.
PHIQUANT_INLINE vi widen_some(const uint16_t* from, int64_t count, int32_t rest) {
  const __mmask16 given = count >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << count) - 1);
  const __m256i others = _mm256_set1_epi16(static_cast<int16_t>(rest));
  return (vi)_mm512_cvtepu16_epi32(_mm256_mask_loadu_epi16(others, given, from));
}
PHIQUANT_INLINE vh narrow(vi value) { return (vh)_mm512_cvtepi32_epi16((__m512i)value); }
PHIQUANT_INLINE vf halves_to_floats(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
PHIQUANT_INLINE void floats_to_halves(uint16_t* to, vf value) {
  store(to, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Of every 2 * `step` lanes: a's second half onto its first, then b's first half onto its second.
// A blend takes either port where a second permutation would take one.
template <int step>
PHIQUANT_INLINE vf add_halves(vf a, vf b) {
  constexpr int kSecond = step == 8 ? 0xFF00 : step == 4 ? 0xF0F0 : step == 2 ? 0xCCCC : 0xAAAA;
  vi place;
  for (int i = 0; i < kLanes; i++) place[i] = (i & step) == 0 ? i + step : 16 + i - step;
  const __m512 crossed = _mm512_permutex2var_ps(a, (__m512i)place, b);
  return (vf)_mm512_mask_blend_ps(static_cast<__mmask16>(kSecond), a, b) + (vf)crossed;
}

PHIQUANT_INLINE void prefetch(const uint8_t* from) {
  _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
