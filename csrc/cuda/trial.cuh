// One candidate for a group's scale word: which sub-cells its weights are in, and what that costs.
// The same fp32 and fp64 operations in the same order as on the CPU (csrc/cpu/score.h), never
// contracted, so that scores agree to the bit and with them every choice.
#pragma once

#include "encode.h"
#include "subcells.cuh"

namespace phiquant::cuda {

inline constexpr int kQuad = 4;       // weights that are looked for together
inline constexpr int kSumLanes = 16;  // partial sums of ordinary groups: the CPU's lanes

// The smallest scale whose grid covers a group, and its word without sign and bend.
struct Word {
  float scale;
  int magnitude;
};

// `top` and `bottom`: the grid's ends at scale 1. As smallest_words of the reference.
__device__ __forceinline__ Word smallest_word(const Layout& layout, float top, float bottom,
                                              float long_end, float short_end) {
  constexpr float kSmallest = 0x1p-14f, kLargest = 0x1.fep15f;
  const float unit = power_of_two(layout.exponent);
  const float needed = __fmul_rn(fmaxf(__fdiv_rn(long_end, top), __fdiv_rn(short_end, bottom)),
                                 power_of_two(-layout.exponent));
  // A float with 7 mantissa bits is an fp32 whose low 16 bits are zero: round up to the next.
  float rounded = __int_as_float((__float_as_int(needed) + 0xFFFF) & ~0xFFFF);
  rounded = fminf(fmaxf(rounded, kSmallest), kLargest);
  const float first = __fmul_rn(rounded, unit);
  const bool short_by_one =
      __fmul_rn(first, top) < long_end || __fmul_rn(first, bottom) < short_end;
  rounded = fminf(__int_as_float(__float_as_int(rounded) + (short_by_one ? 0x10000 : 0)), kLargest);
  const int bits = __float_as_int(rounded) - static_cast<int>(kWordBias);
  return {__fmul_rn(rounded, unit), bits >> kWordShift};
}

// A bend, a sign and a scale > 0.
template <bool golden>
struct Trial {
  const GridTable* grid;
  Bend bend;
  float scale;
  bool negative;

  __device__ __forceinline__ float level(float p) const {
    return golden ? grid->golden_level(p) : bend.level(p);
  }
  __device__ __forceinline__ float edge(float p) const { return __fmul_rn(level(p), scale); }

  __device__ __forceinline__ float turned(float weight) const {
    return __uint_as_float(__float_as_uint(weight) ^ (negative ? 0x80000000u : 0));
  }
  // What decoding gives at p, less the turned weight.
  __device__ __forceinline__ float error(float p, float weight, float unit) const {
    const float decoded = fmaxf(fminf(edge(p), kLargestFloat), -kLargestFloat);
    return __fmul_rn(__fsub_rn(decoded, weight), unit);
  }
};

// -0.0 sorts below +0.0: as the number below it, since no other lies between them.
__device__ __forceinline__ float below_zero(float weight) {
  return __float_as_uint(weight) == 0x80000000u ? -0x1p-149f : weight;
}

// The reference's binary search, in positions, which are exact: from the lower edge of a cell (or
// of the grid) to that of the last of 2^bits parts whose lower edge does not exceed the weight.
// 8 instructions a bit and weight.
template <bool golden, int many>
__device__ __forceinline__ void descend(const Trial<golden>& trial, const float (&weight)[many],
                                        int bits, float step, float (&p)[many]) {
  for (int bit = 0; bit < bits; bit++, step *= 0.5f) {
#pragma unroll
    for (int i = 0; i < many; i++) {
      const float next = p[i] + step;
      if (trial.edge(next) <= weight[i]) p[i] = next;
    }
  }
}

// The bits of a remainder in the sub-cell from p to p + width.
template <bool golden>
__device__ __forceinline__ int remainder_bits(const Trial<golden>& trial, const Layout& layout,
                                              Dtype stored, float p, float width) {
  const float low = fabsf(trial.edge(p)), high = fabsf(trial.edge(p + width));
  const bool below = p < 0, last = p + width == static_cast<float>(half_of(layout)) + 0.5f;
  const float inner = below ? high : low, outer = below ? low : high;
  const int spare = stored == Dtype::kFloat32
                        ? subcell_between<Dtype::kFloat32>(inner, outer, below, last).spare
                    : stored == Dtype::kBFloat16
                        ? subcell_between<Dtype::kBFloat16>(inner, outer, below, last).spare
                        : subcell_between<Dtype::kFloat16>(inner, outer, below, last).spare;
  return bit_length(spare);
}

// Sums of squared errors. Ordinary groups: fp32, in 16 partial sums.
struct PlainSums {
  float of[kSumLanes] = {};

  __device__ __forceinline__ void add(int lane, float error, float heavy, bool weighted) {
    const float square = __fmul_rn(error, error);
    of[lane] = __fadd_rn(of[lane], weighted ? __fmul_rn(square, heavy) : square);
  }
  __device__ __forceinline__ double total() const {
    float four[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      four[i] = __fadd_rn(__fadd_rn(of[i], of[i + 8]), __fadd_rn(of[i + 4], of[i + 12]));
    }
    return __fadd_rn(__fadd_rn(four[0], four[2]), __fadd_rn(four[1], four[3]));
  }
};

// Where squares may leave fp32's range, and on the golden grid: fp64, one after the other.
struct WideSums {
  double of = 0;

  __device__ __forceinline__ void add(int, float error, float heavy, bool) {
    of = __dadd_rn(of, __dmul_rn(__dmul_rn(error, error), heavy));
  }
  __device__ __forceinline__ double total() const { return of; }
};

}  // namespace phiquant::cuda
