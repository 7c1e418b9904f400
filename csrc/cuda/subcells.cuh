// The floats of a dtype that share a code: how many there are, and which is nearest to zero
// (docs/format.md, Remainders). fp32 operations are never contracted.
#pragma once

#include "grid.cuh"
#include "kernels.h"

namespace phiquant::cuda {

// Ranks are the bits of magnitudes, counted up from zero.
struct Subcell {
  uint32_t first;  // the rank of the float that is nearest to zero
  int spare;       // how many floats follow it
};

// The smallest rank whose float is at least `edge` >= 0, or above it if `beyond`.
template <Dtype stored>
__device__ __forceinline__ uint32_t first_rank(float edge, bool beyond) {
  const uint32_t bits = __float_as_uint(edge);
  if constexpr (stored == Dtype::kFloat32) return bits + (beyond ? 1 : 0);
  if constexpr (stored == Dtype::kBFloat16) return (bits + (beyond ? 0x10000 : 0xFFFF)) >> 16;
  if (edge < 0x1p-14f) {
    const float scaled = edge * 0x1p24f, whole = truncf(scaled);
    return static_cast<uint32_t>(whole) + (beyond || whole < scaled ? 1 : 0);
  }
  return min((bits - (112u << 23) + (beyond ? 0x2000 : 0x1FFF)) >> 13, 0x7C00u);
}

// Between the edges `inner` and `outer`, >= 0, of which `inner` is nearer to zero. Below zero a
// sub-cell holds its outer edge and not its inner one, but for zero; the last one holds both.
template <Dtype stored>
__device__ __forceinline__ Subcell subcell_between(float inner, float outer, bool below,
                                                   bool last) {
  const uint32_t first = first_rank<stored>(inner, below && inner > 0);
  const int spare = static_cast<int>(first_rank<stored>(outer, below || last) - first) - 1;
  return {first, max(spare, 0)};
}

__device__ __forceinline__ int bit_length(int spare) { return 32 - __clz(spare); }

// A sub-cell's number from zero outwards, the same on both sides since the grids are odd.
struct Side {
  uint32_t number;
  bool below;  // zero
  bool last;   // the outermost one above
};

__device__ __forceinline__ Side side_of(const Layout& layout, uint32_t code) {
  const int place = static_cast<int>(code) - zero_code_of(layout);
  return {static_cast<uint32_t>(place < 0 ? ~place : place), place < 0,
          code == (1u << code_bits(layout)) - 1};
}

// `grid` counts positions in sub-cells if it is the phi-grid.
template <Dtype stored>
__device__ __forceinline__ Subcell subcell_of(const Layout& layout, const GridTable& grid, int bend,
                                              const Side& side, float scale) {
  const float number = __uint_as_float(0x4B000000u | side.number) - 0x1p23f;  // exact
  float inner, outer;
  if (layout.grid == GridName::kPhi) {
    inner = grid.bends[bend].level(number);
    outer = grid.bends[bend].level(number + 1.0f);
  } else {
    const float width = power_of_two(-layout.deviation_bits);
    inner = grid.golden_level(number * width);
    outer = grid.golden_level((number + 1.0f) * width);
  }
  return subcell_between<stored>(__fmul_rn(inner, scale), __fmul_rn(outer, scale), side.below,
                                 side.last);
}

// The same of bf16 weights on the phi-grid, where `place` counts sub-cells from the one that begins
// at zero and `most` is the outermost one's. No branches and no predicates: some 22 instructions.
// ceil(bits / 2^16) is ((bits - 1) >> 16) + 1, and the float beyond an edge is (bits >> 16) + 1.
__device__ __forceinline__ Subcell brain_subcell(const Bend& bend, int place, int most,
                                                 float scale) {
  const int below = place >> 31, inner_below = (place + 1) >> 31;  // zero is no one's inner edge
  const int outer_beyond = (place | (most - 1 - place)) >> 31;     // below, or the last
  const float magic = __uint_as_float(0x4B000000u | static_cast<uint32_t>(place ^ below));
  const float inner = __fmul_rn(bend.level(magic - 0x1p23f), scale);
  const float outer = __fmul_rn(bend.level(magic - (0x1p23f - 1)), scale);
  const int first = (__float_as_int(inner) - 1 - inner_below) >> 16;
  const int end = (__float_as_int(outer) - 1 - outer_beyond) >> 16;
  return {static_cast<uint32_t>(first + 1), max(end - first - 1, 0)};
}

}  // namespace phiquant::cuda
