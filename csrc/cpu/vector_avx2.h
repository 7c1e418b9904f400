// Hooks of vector.h for AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace phiquant::cpu::PHIQUANT_ISA {

PHIQUANT_INLINE vf multiply_add(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
PHIQUANT_INLINE vf minimum(vf a, vf b) { return _mm256_min_ps(a, b); }
PHIQUANT_INLINE vf maximum(vf a, vf b) { return _mm256_max_ps(a, b); }
PHIQUANT_INLINE bool any(vi mask) { return _mm256_movemask_ps((vf)mask) != 0; }
PHIQUANT_INLINE uint32_t lanes_of(vi mask) {
  return static_cast<uint32_t>(_mm256_movemask_ps((vf)mask));
}
PHIQUANT_INLINE vf larger_size(vf a, vf b) { return maximum(absolute(a), absolute(b)); }
PHIQUANT_INLINE vi bit_length(vi number) { return bit_length_by_float(number); }
// Four permutes: a gather is slower where microcode guards it.
PHIQUANT_INLINE vf lookup(const float* table, vi place) {
  const __m256i index = (__m256i)place;
  vf part[4];
  for (int i = 0; i < 4; i++) part[i] = _mm256_permutevar8x32_ps(load<vf>(table + 8 * i), index);
  const vf bit3 = (vf)(place << 28), bit4 = (vf)(place << 27);
  const vf low = _mm256_blendv_ps(part[0], part[1], bit3);
  const vf high = _mm256_blendv_ps(part[2], part[3], bit3);
  return _mm256_blendv_ps(low, high, bit4);
}
PHIQUANT_INLINE vi widen(const uint8_t* from) {
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
PHIQUANT_INLINE vi widen(const uint16_t* from) {
  return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
// Values of at most 16 bits.
PHIQUANT_INLINE vh narrow(vi value) {
  const __m256i packed = _mm256_packus_epi32((__m256i)value, (__m256i)value);
  return (vh)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
PHIQUANT_INLINE vf halves_to_floats(const uint16_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
PHIQUANT_INLINE void floats_to_halves(uint16_t* to, vf value) {
  store(to, _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
