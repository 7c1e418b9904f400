// The floats of a dtype that share a code: how many there are, and which is nearest to zero
// (phiquant/codec/remainder.py). Nothing here may be contracted or reordered.
#pragma once

#include "words.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// One lane a weight. Ranks are the bits of magnitudes, counted up from zero.
struct Subcells {
  vi first;  // the rank of the float that is nearest to zero
  vi spare;  // how many floats follow it
};

// The smallest rank whose float is at least `edge`, or above it where `beyond` (a mask) is set.
template <Dtype stored>
PHIQUANT_INLINE vi first_rank(vf edge, vi beyond) {
  const vi bits = (vi)edge;
  if (stored == Dtype::kFloat32) return bits - beyond;
  if (stored == Dtype::kBFloat16) return (bits + 0xFFFF - beyond) >> 16;
  const vi infinity = vi{} + 0x7C00;
  const vi normal = (bits - (112 << 23) + 0x1FFF - beyond) >> 13;
  const vf scaled = minimum(edge, splat(1.0f)) * 0x1p24f;
  const vi whole = truncate(scaled);
  const vi denormal = whole - (beyond | (to_float(whole) < scaled));
  const vi rank = edge < 0x1p-14f ? denormal : normal;
  return rank > infinity ? infinity : rank;
}

PHIQUANT_INLINE vi larger(vi a, vi b) { return a > b ? a : b; }

// Between the edges `inner` and `outer`, >= 0, of which `inner` is nearer to zero. Below zero (a
// mask) a sub-cell holds its outer edge and not its inner one, but for zero; the last holds both.
template <Dtype stored>
PHIQUANT_INLINE Subcells subcells_between(vf inner, vf outer, vi below, vi last) {
  const vi beyond = larger(below, -(vi)inner);  // the mask where inner > 0
  const vi first = first_rank<stored>(inner, beyond);
  const vi spare = first_rank<stored>(outer, below | last) - first - 1;
  return {first, larger(spare, vi{})};
}

// Sub-cells by their number from zero outwards, the same on both sides since the grids are odd.
struct Sides {
  vi number;
  vi below;  // mask
  vi last;   // mask: the outermost one above
};

PHIQUANT_INLINE Sides sides_of(const Layout& layout, vi code) {
  const vi place = code - zero_code_of(layout), below = place >> 31;
  return {place ^ below, below, code == (1 << code_bits(layout)) - 1};
}

// The phi-grid's coefficients on sub-cells instead of cells: powers of two, so that all rounds as
// it does on cells.
struct Steps {
  float line, cubic;

  static PHIQUANT_MEMBER Steps of(const Layout& layout, float line, float cubic) {
    const float width = power_of_two(-layout.deviation_bits);
    return {line * width, cubic * width * width * width};
  }
};

// On the phi-grid at `scale` > 0.
template <Dtype stored>
PHIQUANT_INLINE Subcells phi_subcells(const Steps& steps, vf number, vi below, vi last,
                                      float scale) {
  const auto edge = [&](vf n) { return ((n * n) * steps.cubic + steps.line) * n * scale; };
  return subcells_between<stored>(edge(number), edge(number + 1.0f), below, last);
}
template <Dtype stored>
PHIQUANT_INLINE Subcells phi_subcells(const Steps& steps, const Sides& sides, float scale) {
  return phi_subcells<stored>(steps, to_float(sides.number), sides.below, sides.last, scale);
}

// On the golden grid; `table` holds its edges, code by code.
template <Dtype stored>
PHIQUANT_INLINE Subcells golden_subcells(const Layout& layout, const Sides& sides,
                                         const float* table, float scale) {
  const float* outwards = table + zero_code_of(layout);
  vf inner, outer;
  for (int i = 0; i < kLanes; i++) {
    inner[i] = outwards[sides.number[i]];
    outer[i] = outwards[sides.number[i] + 1];
  }
  return subcells_between<stored>(inner * scale, outer * scale, sides.below, sides.last);
}

PHIQUANT_INLINE vi lane_numbers() {
  vi lanes;
  for (int i = 0; i < kLanes; i++) lanes[i] = i;
  return lanes;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
