// Hooks of nibbles.h for NEON.
#pragma once

#include "bfloat16.h"
#include "decode.h"

namespace phiquant::cpu::PHIQUANT_ISA {

typedef uint8_t bytes __attribute__((vector_size(16)));

inline constexpr bool kByteTables = true;

// Codes of a chunk's even (part 0) or odd weights: one instruction after the loads.
template <int deviation_bits>
PHIQUANT_INLINE bytes load_codes(const uint8_t* index, const uint8_t* deviation, int part) {
  const uint8x16_t indices = vld1q_u8(index);
  if (deviation_bits == 0) {
    return (bytes)(part == 0 ? vandq_u8(indices, vdupq_n_u8(15)) : vshrq_n_u8(indices, 4));
  }
  const uint8x16_t deviations = vld1q_u8(deviation);
  return (bytes)(part == 0 ? vsliq_n_u8(vandq_u8(deviations, vdupq_n_u8(15)), indices, 4)
                           : vsriq_n_u8(indices, deviations, 4));
}

PHIQUANT_INLINE bytes look_up_bytes(const uint8_t* table, bytes codes) {
  return (bytes)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)codes);
}
PHIQUANT_INLINE bytes zip_low(bytes a, bytes b) {
  return (bytes)vzip1q_u8((uint8x16_t)a, (uint8x16_t)b);
}
PHIQUANT_INLINE bytes zip_high(bytes a, bytes b) {
  return (bytes)vzip2q_u8((uint8x16_t)a, (uint8x16_t)b);
}
PHIQUANT_INLINE bytes zip_low_pairs(bytes a, bytes b) {
  return (bytes)vzip1q_u16((uint16x8_t)a, (uint16x8_t)b);
}
PHIQUANT_INLINE bytes zip_high_pairs(bytes a, bytes b) {
  return (bytes)vzip2q_u16((uint16x8_t)a, (uint16x8_t)b);
}

// Eight weights, four even ones and four odd ones, to `to` in their own order.
template <Dtype dtype>
PHIQUANT_INLINE void store_eight(uint8_t* to, const vf weights[2]) {
  if (dtype == Dtype::kFloat32) {
    const float32x4x2_t both{{(float32x4_t)weights[0], (float32x4_t)weights[1]}};
    vst2q_f32(reinterpret_cast<float*>(to), both);
  } else if (dtype == Dtype::kBFloat16) {
    const uint32x4_t even = (uint32x4_t)rounded_bfloat16s(weights[0]);
    const uint32x4_t odd = (uint32x4_t)rounded_bfloat16s(weights[1]);
    store(to, vsriq_n_u32(odd, even, 16));
  } else {
    const auto half = [](vf weight) {
      return vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)saturate(weight, 65504.0f)));
    };
    const uint16x4x2_t both{{half(weights[0]), half(weights[1])}};
    vst2_u16(reinterpret_cast<uint16_t*>(to), both);
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
