// A first pass over all candidates of a group: estimates of their errors, which bounds.h turns into
// bounds of their scores.
//
// Data contract: magnitudes of an ordinary group that every candidate covers. A vector of weights
// takes 37 instructions for both signs of a bend (AVX-512): a shift and four look-ups shared, 5 for
// each position, 2 to see whether sub-cells are certain, 5 for sub-cells' errors (the distance from
// the centre times the slope half-way), 4 for cells' errors; loads at no cost.
#pragma once

#include "table_bits.h"

namespace phiquant::cpu::PHIQUANT_ISA {

#if !defined(PHIQUANT_SCAN_HALVES)
template <bool deepest>
PHIQUANT_INLINE void scan_in_halves(const PhiSearch&, const Group&, const Candidates&, Scan*) {}
#endif

// A sum with it has no fraction; its low bits are the integer.
inline constexpr float kMagic = 0x1.8p23f;
inline constexpr int32_t kMagicBits = 0x4B400000;

#if PHIQUANT_BYTES != 64
// How far a position is above the nearest whole number.
PHIQUANT_INLINE vf from_nearest(vf position) {
  return position - ((position + splat(kMagic)) - splat(kMagic));
}
PHIQUANT_INLINE uint32_t lanes_above(vf a, vf b) { return lanes_of(a > b); }
#endif

// How far from the centre of what must be certain: of a sub-cell, whose edges are those of cells,
// too; of the cell, where sub-cells are too many.
template <int deviation_bits>
PHIQUANT_INLINE vf edge_distance(vf position, vf away) {
  if constexpr (deviation_bits <= 4) return away;
  constexpr float kWidth = 1.0f / (1 << deviation_bits);
  return from_nearest(multiply_add(position, splat(kWidth), splat(kWidth / 2)));
}

PHIQUANT_INLINE vf sum_parts(const vf parts[kParts]) {
  vf sum = parts[0];
  for (int i = 1; i < kParts; i++) sum += parts[i];
  return sum;
}

// The bits of remainders in sub-cells whose numbers have been added to kMagic; no weight is
// padding. In a loop of its own: a processor sees more of its short chains at once than of long
// ones.
template <Priced priced>
PHIQUANT_INLINE vf scan_bits(const PhiSearch& search, const Group& group,
                             const Candidates& candidates, int candidate, const float* number) {
  const float scale = candidates.scale[candidate];
  vi bits{};
  if (table_bits<priced, kMagicBits>(search.layout, scale, candidate / 2, number, &bits)) {
    return to_float(bits);
  }
  constexpr Dtype stored = static_cast<Dtype>(priced);
  const float line = search.curve.line[candidate / 2], cubic = search.curve.cubic[candidate / 2];
  const Steps steps = Steps::of(search.layout, line, cubic);
  const vi turned = vi{} - (candidate & 1);
  for (int at = 0; at < search.layout.group_size; at += kLanes) {
    const vi below = load<vi>(group.weight + at) >> 31 ^ turned;
    // A position near 0 may be estimated below it.
    const vf whole = maximum(load<vf>(number + at) - splat(kMagic), vf{});
    bits += bit_length(phi_subcells<stored>(steps, whole, below, vi{}, scale).spare);
  }
  return to_float(bits);
}

// Estimated positions for two scales, in the units of ScanTable. `shared`: the segment of the first
// and smaller scale says which cubic both use.
template <bool shared>
PHIQUANT_INLINE void find_positions(const ScanTable& table, vf size, const vf reciprocal[2],
                                    vf position[2]) {
  vf t[2];
  vi place[2];
  for (int i = 0; i < 2; i++) t[i] = multiply_add(size, reciprocal[i], splat(table.offset));
  for (int i = 0; i < 2; i++) place[i] = (vi)t[shared ? 0 : i] >> kScanShift;
  for (int i = 0; i < 2; i++) position[i] = lookup(table.coefficient[kScanDegree], place[i]);
  for (int power = kScanDegree - 1; power >= 0; power--) {
    for (int i = 0; i < 2; i++) {
      const vf coefficient = lookup(table.coefficient[power], place[i]);
      position[i] = multiply_add(position[i], t[i], coefficient);
    }
  }
}

// Of levels, at positions.
PHIQUANT_INLINE vf slope_at(const ScanTable& table, vf position) {
  const vf rising = multiply_add(position, splat(table.slope[2]), splat(table.slope[1]));
  return multiply_add(position, rising, splat(table.slope[0]));
}

// Both signs of one bend: the candidates `at`, the first of which has the smaller scale.
template <int deviation_bits, bool weighted, Priced priced>
PHIQUANT_INLINE void scan_bend(const PhiSearch& search, const Group& group,
                               const Candidates& candidates, const int at[2], Scan* out) {
  constexpr bool shared = shares_segments(deviation_bits, priced != Priced::kNone);
  constexpr int kShift = deviation_bits > 1 ? deviation_bits - 1 : 0;
  vf index[2][kParts]{}, deepest[2][kParts]{}, furthest[2]{};
  alignas(64) float number[2][kLargestGroup];
  const ScanTable& table = search.scan[at[0] / 2];
  const vf reciprocal[2] = {splat(candidates.reciprocal[at[0]]),
                            splat(candidates.reciprocal[at[1]])};
  const vf negated[2] = {splat(candidates.negated[at[0]]), splat(candidates.negated[at[1]])};
  for (int base = 0; base < search.layout.group_size; base += kSumLanes) {
    for (int part = 0; part < kParts; part++) {
      const int here = base + part * kLanes;
      const vf weight = load<vf>(group.size + here);
      vf position[2];
      find_positions<shared>(table, load<vf>(group.guess + here), reciprocal, position);
      for (int i = 0; i < 2; i++) {
        const vf shifted = position[i] + splat(kMagic), away = from_nearest(position[i]);
        if (priced != Priced::kNone) store(number[i] + here, shifted);
        furthest[i] = larger_size(furthest[i], edge_distance<deviation_bits>(position[i], away));
        const vf cell = lookup(table.level, (vi)shifted >> kShift);
        const vf off = multiply_add(weight, negated[i], cell);
        const vf heavy = weighted ? off * load<vf>(group.importance + here) : off;
        index[i][part] = multiply_add(off, heavy, index[i][part]);
        if constexpr (deviation_bits > 0) {
          const vf error = away * slope_at(table, multiply_add(away, splat(-0.5f), position[i]));
          const vf counted = weighted ? error * load<vf>(group.importance + here) : error;
          deepest[i][part] = multiply_add(error, counted, deepest[i][part]);
        }
      }
    }
  }
  for (int i = 0; i < 2; i++) {
    out->index[at[i]] = sum_parts(index[i]);
    out->deepest[at[i]] = sum_parts(deepest[i]);
    out->doubtful[at[i]] = __builtin_popcount(lanes_above(furthest[i], splat(table.certain))) *
                           (search.layout.group_size / kLanes);
    if constexpr (priced != Priced::kNone) {
      out->bits[at[i]] = scan_bits<priced>(search, group, candidates, at[i], number[i]);
    }
  }
}

template <int deviation_bits, bool weighted, Priced priced = Priced::kNone>
static void scan_group(const PhiSearch& search, const Group& group, const Candidates& candidates,
                       Scan* out) {
  // The long end reaches further than the short one: of the same two ends, the sign whose long end
  // holds the larger has the smaller scale, on every bend.
  const int swapped = group.below > group.above ? 1 : 0;
  for (int bend = 0; bend < kBendCount; bend++) {
    const int at[2] = {2 * bend + swapped, 2 * bend + 1 - swapped};
    scan_bend<deviation_bits, weighted, priced>(search, group, candidates, at, out);
  }
}

template <int deviation_bits>
PHIQUANT_INLINE void scan_priced(const PhiSearch& search, Dtype dtype, const Group& group,
                                 const Candidates& candidates, Scan* out) {
  switch (dtype) {
    case Dtype::kFloat32:
      return scan_group<deviation_bits, false, Priced::kFloat32>(search, group, candidates, out);
    case Dtype::kBFloat16:
      return scan_group<deviation_bits, false, Priced::kBFloat16>(search, group, candidates, out);
    default:
      return scan_group<deviation_bits, false, Priced::kFloat16>(search, group, candidates, out);
  }
}

template <int deviation_bits>
PHIQUANT_INLINE void scan_lossy(const PhiSearch& search, const Group& group,
                                const Candidates& candidates, Scan* out) {
  if constexpr (deviation_bits <= 4) {
    if (search.in_halves) {
      return scan_in_halves<(deviation_bits > 0)>(search, group, candidates, out);
    }
  }
  return group.importance == nullptr
             ? scan_group<deviation_bits, false>(search, group, candidates, out)
             : scan_group<deviation_bits, true>(search, group, candidates, out);
}

PHIQUANT_INLINE void scan(const PhiSearch& search, const EncodeTask& task, const Group& group,
                          const Candidates& candidates, Scan* out) {
  const int bits = task.layout.deviation_bits;
  if (is_priced(task)) {
    return bits == 2 ? scan_priced<2>(search, task.dtype, group, candidates, out)
                     : scan_priced<4>(search, task.dtype, group, candidates, out);
  }
  return bits == 0   ? scan_lossy<0>(search, group, candidates, out)
         : bits == 2 ? scan_lossy<2>(search, group, candidates, out)
         : bits == 4 ? scan_lossy<4>(search, group, candidates, out)
                     : scan_lossy<8>(search, group, candidates, out);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
