// Hooks of vector.h for any target, in 16-byte registers: SSE2, NEON.
#pragma once

#include "vector.h"

namespace phiquant::cpu::PHIQUANT_ISA {

PHIQUANT_INLINE vf multiply_add(vf a, vf b, vf c) { return a * b + c; }
PHIQUANT_INLINE vf minimum(vf a, vf b) { return a < b ? a : b; }
PHIQUANT_INLINE vf maximum(vf a, vf b) { return a > b ? a : b; }
PHIQUANT_INLINE bool any(vi mask) {
  uint64_t halves[2];
  store(halves, mask);
  return (halves[0] | halves[1]) != 0;
}
PHIQUANT_INLINE uint32_t lanes_of(vi mask) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; i++) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
}
PHIQUANT_INLINE vf larger_size(vf a, vf b) { return maximum(absolute(a), absolute(b)); }
PHIQUANT_INLINE vi bit_length(vi number) { return bit_length_by_float(number); }
PHIQUANT_INLINE vf lookup(const float* table, vi place) {
  vf result;
  for (int i = 0; i < kLanes; i++) result[i] = table[place[i] & (kSegments - 1)];
  return result;
}
PHIQUANT_INLINE vi widen(const uint8_t* from) {
  return __builtin_convertvector(load<vb>(from), vi);
}
PHIQUANT_INLINE vi widen(const uint16_t* from) {
  return __builtin_convertvector(load<vh>(from), vi);
}
PHIQUANT_INLINE vh narrow(vi value) { return __builtin_convertvector((vu)value, vh); }

// Exact, denormals included; infinities and NaNs become values of at least 65536.
PHIQUANT_INLINE vf halves_to_floats(const uint16_t* from) {
  const vi bits = widen(from);
  const vf magnitude = (vf)((bits & 0x7FFF) << 13) * 0x1p112f;
  return (vf)((vi)magnitude | (bits & 0x8000) << 16);
}
// To nearest even; the value is within fp16's range.
PHIQUANT_INLINE void floats_to_halves(uint16_t* to, vf value) {
  const vi bits = (vi)value, sign = (vi)((vu)bits >> 16) & 0x8000;
  const vi magnitude = bits & 0x7FFFFFFF;
  const vi normal = (magnitude - (112 << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13;
  // Below 2^-14 a sum with 1/2 rounds at fp16's denormal step.
  const vi denormal = (vi)((vf)magnitude + 0.5f) - 0x3F000000;
  store(to, narrow((magnitude < 0x38800000 ? denormal : normal) | sign));
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
