// The weights that codes of one row and group stand for: from a table without deviations, else from
// the group's curve.
#pragma once

#include "floats.cuh"
#include "grid.cuh"

namespace phiquant::cuda {

// Bytes of `low` (0 .. 3) and `high` (4 .. 7) by nibbles of `pick`; one with its upper bit set is
// that byte's sign in all bits.
__device__ __forceinline__ uint32_t picked(uint32_t low, uint32_t high, uint32_t pick) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(pick));
  return bytes;
}

// 16 weights of 16 bits: all their low bytes, then all their high ones.
struct LevelTable {
  uint4 low, high;

  // A code's upper bit chooses between halves of the table.
  __device__ __forceinline__ static uint32_t bytes_of(const uint4& of, uint32_t pick,
                                                      uint32_t upper) {
    return (picked(of.z, of.w, pick) & upper) | (picked(of.x, of.y, pick) & ~upper);
  }

  __device__ __forceinline__ void four(uint32_t pick, uint32_t upper, uint32_t* first,
                                       uint32_t* second) const {
    const uint32_t lows = bytes_of(low, pick, upper), highs = bytes_of(high, pick, upper);
    *first = picked(lows, highs, 0x5140);
    *second = picked(lows, highs, 0x7362);
  }

  // 8 codes, in pairs.
  __device__ __forceinline__ void look_up(uint32_t codes, uint32_t* a, uint32_t* b, uint32_t* c,
                                          uint32_t* d) const {
    const uint32_t picks = codes & 0x77777777, even = codes << 4;
    four(picks, picked(even, codes, 0xD9C8), a, b);
    four(picks >> 16, picked(even, codes, 0xFBEA), c, d);
  }
};

// As decode() has it: level = ((p * p) * cubic + line) * p. Without deviations p counts cells, else
// 4096ths of them.
template <int deviation>
inline constexpr float kPositionUnit = deviation == 0 ? 1.0f : 0x1p-12f;

struct Curve {
  float line, cubic, scale;

  // Both terms times the scale: what `quick` takes.
  __device__ __forceinline__ Curve scaled() const { return {line * scale, cubic * scale, 1}; }

  // A weight but for the rounding of fp32; 3 instructions.
  __device__ __forceinline__ float quick(float p) const { return fmaf(p * p, cubic, line) * p; }

  __device__ __forceinline__ float weight(float p) const {
    const float level = __fmul_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, p), cubic), line), p);
    return __fmul_rn(level, scale);
  }

  // Indices -7 .. 8.
  template <class T>
  __device__ __forceinline__ LevelTable table() const {
    float at[9];
#pragma unroll
    for (int i = 0; i < 9; i++) at[i] = weight(static_cast<float>(i));
    uint32_t pairs[8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      pairs[i] = rounded_pair<T>(-at[7 - 2 * i], -at[6 - 2 * i]);
      pairs[4 + i] = rounded_pair<T>(at[2 * i + 1], at[2 * i + 2]);
    }
    return {{picked(pairs[0], pairs[1], 0x6420), picked(pairs[2], pairs[3], 0x6420),
             picked(pairs[4], pairs[5], 0x6420), picked(pairs[6], pairs[7], 0x6420)},
            {picked(pairs[0], pairs[1], 0x7531), picked(pairs[2], pairs[3], 0x7531),
             picked(pairs[4], pairs[5], 0x7531), picked(pairs[6], pairs[7], 0x7531)}};
  }
};

// Four codes of even columns and four of odd ones, as bytes: index, then 4 bits of deviation. Where
// there are 2, the half of the sub-cell follows.
struct CodeBytes {
  uint32_t even, odd;
};

// Nibbles of indices and as many deviations; 2 bits as nibbles of two in the lower half of bytes.
template <int deviation>
__device__ __forceinline__ CodeBytes joined(uint32_t index, uint32_t high) {
  constexpr uint32_t kHigh = 0xF0F0F0F0, kPart = 0x0C0C0C0C, kHalf = 0x02020202;
  if constexpr (deviation == 2) {
    return {(index << 4 & kHigh) | (high << 2 & kPart) | kHalf,
            (index & kHigh) | (high & kPart) | kHalf};
  } else {
    return {(index << 4 & kHigh) | (high & ~kHigh), (index & kHigh) | (high >> 4 & ~kHigh)};
  }
}

// The float 2^23 + 256 code, and half a code more where bytes do not hold halves.
template <int deviation>
inline constexpr uint32_t kMagic = deviation == 4 ? 0x4B000080 : 0x4B000000;

// 4096 p of the code in byte i; exact.
template <int i>
__device__ __forceinline__ float position(uint32_t codes, uint32_t magic) {
  return __uint_as_float(__byte_perm(codes, magic, 0x7504 | i << 4)) - (0x1p23f + 7.5f * 4096);
}

// `curve`: scaled.
template <class T, int i>
__device__ __forceinline__ uint32_t weight_pair(const Curve& curve, const CodeBytes& codes,
                                                uint32_t magic) {
  return rounded_pair<T>(curve.quick(position<i>(codes.even, magic)),
                         curve.quick(position<i>(codes.odd, magic)));
}

}  // namespace phiquant::cuda
