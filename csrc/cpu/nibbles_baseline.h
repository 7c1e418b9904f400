// Hooks of nibbles.h for any target, in 16-byte registers.
#pragma once

#include "bfloat16.h"
#include "decode.h"

namespace phiquant::cpu::PHIQUANT_ISA {

typedef vb16 bytes;
typedef uint16_t pairs __attribute__((vector_size(16)));

inline constexpr bool kByteTables = false;  // SSE2 has no look-up: the cubic is faster

// Codes of a chunk's even (part 0) or odd weights.
template <int deviation_bits>
PHIQUANT_INLINE bytes load_codes(const uint8_t* index, const uint8_t* deviation, int part) {
  const bytes indices = load<bytes>(index);
  if (deviation_bits == 0) return part == 0 ? indices & 15 : indices >> 4;
  const bytes deviations = load<bytes>(deviation);
  return part == 0 ? indices << 4 | (deviations & 15) : (indices & 0xF0) | deviations >> 4;
}

PHIQUANT_INLINE bytes look_up_bytes(const uint8_t* table, bytes codes) {
  bytes result;
  for (int i = 0; i < PHIQUANT_BYTES; i++) result[i] = table[codes[i]];
  return result;
}
PHIQUANT_INLINE bytes zip_low(bytes a, bytes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
PHIQUANT_INLINE bytes zip_high(bytes a, bytes b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}
PHIQUANT_INLINE bytes zip_low_pairs(bytes a, bytes b) {
  return (bytes)__builtin_shufflevector((pairs)a, (pairs)b, 0, 8, 1, 9, 2, 10, 3, 11);
}
PHIQUANT_INLINE bytes zip_high_pairs(bytes a, bytes b) {
  return (bytes)__builtin_shufflevector((pairs)a, (pairs)b, 4, 12, 5, 13, 6, 14, 7, 15);
}

// Eight weights, four even ones and four odd ones, to `to` in their own order.
template <Dtype dtype>
PHIQUANT_INLINE void store_eight(uint8_t* to, const vf weights[2]) {
  const vf even = weights[0], odd = weights[1];
  if (dtype == Dtype::kBFloat16) {
    store(to, (vi)((vu)rounded_bfloat16s(even) >> 16) | (rounded_bfloat16s(odd) & ~0xFFFF));
    return;
  }
  const vf first = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
  const vf second = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
  if (dtype == Dtype::kFloat32) {
    store(to, first);
    store(to + sizeof first, second);
  } else {
    uint16_t* halves = reinterpret_cast<uint16_t*>(to);
    floats_to_halves(halves, saturate(first, 65504.0f));
    floats_to_halves(halves + kLanes, saturate(second, 65504.0f));
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
