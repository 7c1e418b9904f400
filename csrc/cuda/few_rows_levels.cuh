// Codes of eight weights of one row to their levels, in packed halves: a * p + b * p^3 with a and b
// chosen so that both are exact in fp16. A level has then three roundings, of p^2, of a + b p^2 and
// of the product: 2^-10 of it at most, 2^-11.5 on average (counted over all codes and bends).
#pragma once

#include "basis.cuh"
#include "grid.cuh"

namespace phiquant::cuda {

// f(p) = back * (p * a + p^3 * b), a and b two halves, a the low one.
struct FittedBend {
  uint32_t halves;
  float back;
};

// The bits of a positive double's nearest half, and how far that is off, as a part of it.
struct Rounded {
  uint32_t bits;
  double value;

  constexpr explicit Rounded(double of) : bits{}, value{} {
    double mantissa = of, unit = 1;
    int exponent = 25;  // of 1024 * unit
    for (; mantissa < 1024; exponent--) mantissa *= 2, unit /= 2;
    for (; mantissa >= 2048; exponent++) mantissa /= 2, unit *= 2;
    bits = static_cast<uint32_t>(exponent - 1) * 1024 + static_cast<uint32_t>(mantissa + 0.5);
    value = static_cast<double>(static_cast<uint32_t>(mantissa + 0.5)) * unit;
  }
};

// All halves between 1 and 2 are tried for a: b is hit within 2^-20.
constexpr FittedBend fitted_bend(double line, double cubic) {
  FittedBend best{};
  double nearest = 1;
  for (int i = 0; i < 1024; i++) {
    const double a = 1 + i / 1024.0, factor = a / line;
    const Rounded b(cubic * factor);
    const double off = b.value / (cubic * factor) - 1, distance = off < 0 ? -off : off;
    if (distance >= nearest) continue;
    nearest = distance;
    best = {b.bits << 16 | Rounded(a).bits, static_cast<float>(1 / factor)};
  }
  return best;
}

struct FittedBends {
  FittedBend of[kBendCount];

  constexpr FittedBends() : of{} {
    for (int i = 0; i < kBendCount; i++) of[i] = fitted_bend(kLines[i] / 8.0, kBends[i] / 512.0);
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

// Instructions: 21 with an index alone, 28 with 4 deviation bits; a quarter of them and less at
// half the rate.
template <int deviation>
__device__ __forceinline__ void make_levels(uint32_t index, uint32_t high, uint32_t bend,
                                            uint32_t (&levels)[4]) {
  const __half2 a = __low2half2(halves(bend)), b = __high2half2(halves(bend));
  __half2 p[4];
  if constexpr (deviation == 0) index_positions(index, p);
  if constexpr (deviation == 2) quarter_positions(index, high, p);
  if constexpr (deviation == 4) fine_positions(index, high, p);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    levels[i] = bits_of(__hmul2(__hfma2(b, __hmul2(p[i], p[i]), a), p[i]));
  }
}

}  // namespace phiquant::cuda
