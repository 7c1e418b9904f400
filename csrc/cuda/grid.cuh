// The grids on the device: levels by the fixed sequence of fp32 operations, never contracted.
#pragma once

#include <cstdint>

#include "floats.cuh"
#include "phiquant/grid.h"
#include "phiquant/layout.h"

namespace phiquant::cuda {

// A host's constant, copied to where threads may look up any of its elements.
template <int size>
struct Copied {
  float of[size];

  constexpr explicit Copied(const float (&from)[size]) : of{} {
    for (int i = 0; i < size; i++) of[i] = from[i];
  }
};
inline constexpr int kKnots = sizeof(kLadder) / sizeof(kLadder[0]);
static __device__ const Copied<kBendCount> kDeviceBends(kBends), kDeviceLines(kLines);
static __device__ const Copied<kKnots> kDeviceLadder(kLadder);

// f(p) = ((p * p) * cubic + line) * p
struct Bend {
  float line, cubic;

  __device__ __forceinline__ float level(float p) const {
    return __fmul_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, p), cubic), line), p);
  }
};

// What a block of threads reads of a grid, in shared memory: all bends of the phi-grid for
// positions counted in `unit` (a power of two, so that all rounds as it does on cells), or the
// golden knots.
union GridTable {
  Bend bends[kBendCount];
  float knots[kKnots];

  // By at least 67 threads of the block; a barrier has to follow.
  __device__ __forceinline__ void fill(const Layout& layout, float unit) {
    const int i = static_cast<int>(threadIdx.x), half = half_of(layout);
    const float shrink = unit / static_cast<float>(half);
    if (layout.grid == GridName::kGolden) {
      if (i < kKnots) knots[i] = __fdiv_rn(kDeviceLadder.of[i], kDeviceLadder.of[2 * half]);
    } else if (i < kBendCount) {
      bends[i] = {kDeviceLines.of[i] * shrink, kDeviceBends.of[i] * shrink * shrink * shrink};
    }
  }

  // Linear between knots at the integers and half-integers; odd.
  __device__ __forceinline__ float golden_level(float p) const {
    const float doubled = fabsf(p) * 2;
    const int low = static_cast<int>(doubled);
    const float left = knots[low], right = knots[low + 1];
    const float rest = doubled - static_cast<float>(low);
    const float level = __fadd_rn(__fmul_rn(__fsub_rn(right, left), rest), left);
    return p < 0 ? -level : level;
  }
};

__device__ __forceinline__ float power_of_two(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(127 + exponent) << 23);
}

// What a scale word says; the scale is NaN if the word is none.
struct Scale {
  float value;  // signed
  int bend;
};

// `unit`: 2^exponent.
__device__ __forceinline__ Scale scale_of(const Layout& layout, uint32_t word, float unit) {
  const int bend = static_cast<int>(word & kBendMask);
  const uint32_t field = word >> 10 & 31;
  const bool bad = field == 0 || field == 31 || bend >= bend_count(layout);
  const uint32_t size = ((word & 0x7FF8) << kWordShift) + kWordBias, sign = (word & 0x8000) << 16;
  return {bad ? quiet_nan() : __uint_as_float(size | sign) * unit, bend};
}

}  // namespace phiquant::cuda
