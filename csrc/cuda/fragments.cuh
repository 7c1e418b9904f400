// Rows of x in shared memory as the tensor cores take them: fp16, 16 columns a thread of four, in
// the order of the pairs that basis.cuh makes of weights. fp16 has fewer exponents than bf16, so
// bf16 numbers are multiplied by a power of two for every group of a row that puts the largest just
// below 2^15: whatever is not 2^-32 of that or smaller keeps all its bits.
#pragma once

#include "floats.cuh"
#include "kernels.h"

namespace phiquant::cuda {

inline constexpr int kGroup = 64;               // weights that share a scale
inline constexpr int kPart = kGroup / 4;        // of them to each of four threads
inline constexpr int kGroupBytes = kGroup * 2;  // of one row of x

// Powers of two that put a group whose largest magnitude has these bf16 bits below 2^15, and back.
struct Shift {
  float there, back;
};
__device__ __forceinline__ Shift shift_of(uint32_t largest) {
  const uint32_t exponent = largest >> 7, there = min(268 - exponent, 253u);
  return {__uint_as_float(there << 23), __uint_as_float((254 - there) << 23)};
}

// Eight columns of a row as pairs of 0 and 4, 1 and 5, 2 and 6, 3 and 7.
struct Octet {
  uint32_t pairs[4];
};

// Eight columns as they lie in memory.
__device__ __forceinline__ Octet paired(const uint4& plain) {
  return {__byte_perm(plain.x, plain.z, 0x5410), __byte_perm(plain.x, plain.z, 0x7632),
          __byte_perm(plain.y, plain.w, 0x5410), __byte_perm(plain.y, plain.w, 0x7632)};
}

// 16 bits a column, 0 beyond `count`; any alignment.
__device__ __forceinline__ Octet load_octet(const uint16_t* from, int64_t count) {
  uint4 plain{};
  if (count >= 8 && (reinterpret_cast<uintptr_t>(from) & 15) == 0) {
    plain = __ldcg(reinterpret_cast<const uint4*>(from));
  } else {
    auto* const words = reinterpret_cast<uint16_t*>(&plain);
#pragma unroll
    for (int i = 0; i < 8; i++) words[i] = i < count ? __ldcg(from + i) : uint16_t{0};
  }
  return paired(plain);
}

__device__ __forceinline__ uint32_t largest_of(const Octet& octet) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) largest = __vmaxu2(largest, octet.pairs[i] & 0x7FFF7FFF);
  return max(largest & 0xFFFF, largest >> 16);
}

__device__ __forceinline__ void to_halves(float there, Octet* octet) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t pair = octet->pairs[i];
    const float low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xFFFF0000);
    const __half2 both = __floats2half2_rn(low * there, high * there);
    octet->pairs[i] = *reinterpret_cast<const uint32_t*>(&both);
  }
}

// Rows of x on their way to `fragments`, `rows` of them (zeros from m on), and what each group of a
// row is to be multiplied with again to `back`. `groups` is a multiple of 8.
template <bool brain, int rows>
struct Preparation {
  const uint16_t* x;  // [m, columns]
  int64_t m, columns;
  int groups;
  uint4* fragments;
  float* back;

  // 16 columns of a row.
  struct Piece {
    Octet low, high;
  };

  __device__ __forceinline__ int pieces() const { return groups * rows * 4; }

  __device__ __forceinline__ Piece load(int item) const {
    const int part = item & 3, row = item / 4 % rows, group = item / (4 * rows);
    const int64_t column = int64_t{group} * kGroup + part * kPart;
    const int64_t count = row < m ? columns - column : 0;
    const uint16_t* from = x + row * columns + column;
    return {load_octet(from, count), load_octet(from + 8, count - 8)};
  }

  // By whole warps.
  __device__ __forceinline__ void store(int item, Piece piece) const {
    const int part = item & 3, row = item / 4 % rows, group = item / (4 * rows);
    if constexpr (brain) {
      uint32_t largest = max(largest_of(piece.low), largest_of(piece.high));
      largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = max(largest, __shfl_xor_sync(~0u, largest, 2));
      const Shift shift = shift_of(largest);
      to_halves(shift.there, &piece.low);
      to_halves(shift.there, &piece.high);
      if (part == 0) back[group * rows + row] = shift.back;
    }
    uint4* to = fragments + group * 2 * rows * 4 + row * 4 + part;
    to[0] = *reinterpret_cast<const uint4*>(&piece.low);
    to[rows * 4] = *reinterpret_cast<const uint4*>(&piece.high);
  }

  // All of a block's threads; the first pieces are asked for before `meanwhile` asks for more.
  template <class Other>
  __device__ __forceinline__ void run(const Other& meanwhile) const {
    constexpr int kFirst = rows > 2 ? 4 : 2;  // of a thread
    const int step = static_cast<int>(blockDim.x);
    int item = static_cast<int>(threadIdx.x);
    Piece first[kFirst];
#pragma unroll
    for (int i = 0; i < kFirst; i++)
      if (item + i * step < pieces()) first[i] = load(item + i * step);
    meanwhile();
#pragma unroll
    for (int i = 0; i < kFirst; i++, item += step)
      if (item < pieces()) store(item, first[i]);
    for (; item < pieces(); item += step) store(item, load(item));
  }
};

}  // namespace phiquant::cuda
