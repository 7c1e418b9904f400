// Codes of eight weights of one row to their levels, in packed halves: a p + b p^3 is
// b (p^2 + q) p, and b is left to what scales sums. A level has three roundings, of q, of p^2 + q
// and of the product: 2^-9.8 of it at most, 2^-11.1 on average (counted over all codes and bends).
#pragma once

#include "basis.cuh"
#include "grid.cuh"

namespace phiquant::cuda {

// f(p) = back * (p^2 + q) * p, q twice.
struct FittedBend {
  uint32_t q;
  float back;
};

// The bits of a positive double's nearest half.
constexpr uint32_t half_bits(double of) {
  uint32_t exponent = 25;  // of 1024 and more
  for (; of < 1024; exponent--) of *= 2;
  for (; of >= 2048; exponent++) of /= 2;
  return (exponent - 1) * 1024 + static_cast<uint32_t>(of + 0.5);
}

struct FittedBends {
  FittedBend of[kBendCount];

  constexpr FittedBends() : of{} {
    for (int i = 0; i < kBendCount; i++) {
      of[i] = {half_bits(64.0 * kLines[i] / kBends[i]) * 0x10001, kBends[i] / 512};
    }
  }
};
inline constexpr FittedBends kFitted{};

// From the code itself: nothing waits for memory.
template <int i = 0>
__device__ __forceinline__ FittedBend fitted_bend_of(int bend) {
  if constexpr (i + 1 < kBendCount) {
    if (bend != i) return fitted_bend_of<i + 1>(bend);
  }
  constexpr FittedBend found = kFitted.of[i];
  return found;
}

// Instructions: 17 with an index alone, 24 with 4 deviation bits; a third of them and less at half
// the rate.
template <int deviation>
__device__ __forceinline__ void make_levels(uint32_t index, uint32_t high, uint32_t q,
                                            uint32_t (&levels)[4]) {
  __half2 p[4];
  if constexpr (deviation == 0) index_positions(index, p);
  if constexpr (deviation == 2) quarter_positions(index, high, p);
  if constexpr (deviation == 4) fine_positions(index, high, p);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    levels[i] = bits_of(__hmul2(__hfma2(p[i], p[i], halves(q)), p[i]));
  }
}

}  // namespace phiquant::cuda
