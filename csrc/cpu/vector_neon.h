// Hooks of vector.h for NEON, as every aarch64 has it.
#pragma once

#include <arm_neon.h>

#include "vector.h"

namespace phiquant::cpu::PHIQUANT_ISA {

PHIQUANT_INLINE vf multiply_add(vf a, vf b, vf c) {
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
PHIQUANT_INLINE vf minimum(vf a, vf b) { return (vf)vminq_f32((float32x4_t)a, (float32x4_t)b); }
PHIQUANT_INLINE vf maximum(vf a, vf b) { return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
PHIQUANT_INLINE bool any(vi mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }
PHIQUANT_INLINE uint32_t lanes_of(vi mask) {
  const uint32x4_t bit = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32((uint32x4_t)mask, bit));
}
PHIQUANT_INLINE vf larger_size(vf a, vf b) { return maximum(absolute(a), absolute(b)); }
PHIQUANT_INLINE vi bit_length(vi number) { return 32 - (vi)vclzq_s32((int32x4_t)number); }
// Four loads: 128 bytes of table are eight registers and two of the slowest `tbl`, every time.
PHIQUANT_INLINE vf lookup(const float* table, vi place) {
  vf result;
  for (int i = 0; i < kLanes; i++) result[i] = table[place[i] & (kSegments - 1)];
  return result;
}
PHIQUANT_INLINE vi widen(const uint8_t* from) {
  uint32_t four;
  std::memcpy(&four, from, sizeof four);
  return (vi)vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}
PHIQUANT_INLINE vi widen(const uint16_t* from) { return (vi)vmovl_u16(vld1_u16(from)); }
PHIQUANT_INLINE vh narrow(vi value) { return (vh)vmovn_u32((uint32x4_t)value); }
PHIQUANT_INLINE vf halves_to_floats(const uint16_t* from) {
  return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}
PHIQUANT_INLINE void floats_to_halves(uint16_t* to, vf value) {
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)value)));
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
