// Vectors of one native register, over the vector extensions of GCC and Clang. An instruction set's
// source file defines PHIQUANT_BYTES and includes its own hooks after this file: multiply_add,
// lookup, widen, narrow, minimum, maximum, halves_to_floats, floats_to_halves,
// bit_length, any, lanes_of and larger_size.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr float kLargestFloat = 0x1.fffffep127f;
inline constexpr int kLanes = PHIQUANT_BYTES / 4;
// Errors are summed in 16 lanes whatever the register holds, so that every instruction set chooses
// the same words.
inline constexpr int kSumLanes = 16;
inline constexpr int kParts = kSumLanes / kLanes;

typedef float vf __attribute__((vector_size(PHIQUANT_BYTES)));
typedef int32_t vi __attribute__((vector_size(PHIQUANT_BYTES)));
typedef uint32_t vu __attribute__((vector_size(PHIQUANT_BYTES)));
typedef uint16_t vh __attribute__((vector_size(PHIQUANT_BYTES / 2)));
typedef uint8_t vb __attribute__((vector_size(PHIQUANT_BYTES / 4)));

template <class V, class T>
PHIQUANT_INLINE V load(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class V, class T>
PHIQUANT_INLINE void store(T* to, V value) {
  std::memcpy(to, &value, sizeof value);
}
PHIQUANT_INLINE vf splat(float value) { return value - vf{}; }
PHIQUANT_INLINE vi splat(int32_t value) { return value - vi{}; }
PHIQUANT_INLINE vf to_float(vi value) { return __builtin_convertvector(value, vf); }
// Towards zero; the value fits.
PHIQUANT_INLINE vi truncate(vf value) { return __builtin_convertvector(value, vi); }
PHIQUANT_INLINE vf absolute(vf value) { return (vf)((vi)value & 0x7FFFFFFF); }

// Bits that a number >= 0 takes, 0 for 0. Without its second highest bit it cannot round up to the
// next power of two.
PHIQUANT_INLINE vi bit_length_by_float(vi number) {
  const vi length = ((vi)to_float(number & ~(number >> 1)) >> 23) - 126;
  return length > 0 ? length : vi{};
}

typedef float v4 __attribute__((vector_size(16)));

// The sum of 16 lanes, always in the same order: halves onto halves.
PHIQUANT_INLINE float sum_lanes(const vf parts[kParts]) {
  v4 quarter[4];
  std::memcpy(quarter, parts, sizeof quarter);
  const v4 four = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

#if PHIQUANT_BYTES != 64
// Sums of neighbours: a's, then b's.
PHIQUANT_INLINE vf pair_sums(vf a, vf b) {
#if PHIQUANT_BYTES == 32
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}
#endif

typedef int32_t v4i __attribute__((vector_size(16)));

PHIQUANT_INLINE int64_t sum_integers(vi value) {
  v4i quarter[kLanes / 4];
  std::memcpy(quarter, &value, sizeof quarter);
  v4i four = quarter[0];
  for (int i = 1; i < kLanes / 4; i++) four += quarter[i];
  return (int64_t{four[0]} + four[1]) + (int64_t{four[2]} + four[3]);
}

// The largest of all lanes.
PHIQUANT_INLINE float lanes_maximum(vf value) {
  v4 quarter[kLanes / 4];
  std::memcpy(quarter, &value, sizeof quarter);
  v4 four = quarter[0];
  for (int i = 1; i < kLanes / 4; i++) four = four > quarter[i] ? four : quarter[i];
  const float first = four[0] > four[2] ? four[0] : four[2];
  const float second = four[1] > four[3] ? four[1] : four[3];
  return first > second ? first : second;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
