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

// Between the edges `inner` and `outer`, >= 0, of which `inner` is nearer to zero. Below zero (a
// mask) a sub-cell holds its outer edge and not its inner one; the last of all holds both.
template <Dtype stored>
PHIQUANT_INLINE Subcells subcells_between(vf inner, vf outer, vi below, vi last) {
  const vi first = first_rank<stored>(inner, below & (inner > 0.0f));
  const vi spare = first_rank<stored>(outer, below | last) - first - 1;
  return {first, spare > 0 ? spare : vi{}};
}

// Sub-cells by their number from zero outwards, the same on both sides since the grids are odd.
struct Sides {
  vi number;
  vi below;  // mask
  vi last;   // mask: the outermost one above
};

PHIQUANT_INLINE Sides sides_of(const Layout& layout, vi code) {
  const int32_t zero = zero_code_of(layout), last = (1 << code_bits(layout)) - 1;
  const vi below = code < zero;
  return {below ? zero - 1 - code : code - zero, below, code == last};
}

// On the phi-grid at `scale` > 0.
template <Dtype stored>
PHIQUANT_INLINE Subcells phi_subcells(const Layout& layout, const Sides& sides, float line,
                                      float cubic, float scale) {
  const vf width = splat(power_of_two(-layout.deviation_bits));
  const auto edge = [&](vi number) {
    const vf p = to_float(number) * width;
    return ((p * p) * cubic + line) * p * scale;
  };
  return subcells_between<stored>(edge(sides.number), edge(sides.number + 1), sides.below,
                                  sides.last);
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
