// A first pass over all candidates of a group: estimates of their errors, which bounds.h turns into
// bounds of their scores.
//
// Data contract: magnitudes of an ordinary group that every candidate covers. A vector of weights
// takes 39 instructions for both signs of a bend (AVX-512): a shift and four look-ups shared, 8 for
// positions, 10 for sub-cells' errors, 8 for cells' errors, 4 to see whether sub-cells are certain,
// 4 loads at no cost.
#pragma once

#include "search.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Estimates of one candidate's sums over lanes, relative to its scale.
struct Scan {
  alignas(64) vf index[kCandidates];
  alignas(64) vf deepest[kCandidates];
  alignas(64) vf bits[kCandidates];         // of remainders, where they have a price
  alignas(64) float doubtful[kCandidates];  // how many lanes hold weights near an edge
};

PHIQUANT_INLINE vf sum_parts(const vf parts[kParts]) {
  vf sum = parts[0];
  for (int i = 1; i < kParts; i++) sum += parts[i];
  return sum;
}

// The bits of remainders in sub-cells of these numbers; no weight is padding. In a loop of its own:
// a processor sees more of its short chains at once than of long ones.
template <Priced priced>
PHIQUANT_INLINE vf scan_bits(const PhiSearch& search, const Group& group,
                             const Candidates& candidates, int candidate, const float* number) {
  constexpr Dtype stored = static_cast<Dtype>(priced);
  const float line = search.curve.line[candidate / 2], cubic = search.curve.cubic[candidate / 2];
  const Steps steps = Steps::of(search.layout, line, cubic);
  const vi turned = vi{} - (candidate & 1);
  vi bits{};
  for (int at = 0; at < search.layout.group_size; at += kLanes) {
    const vi below = load<vi>(group.weight + at) >> 31 ^ turned;
    const Subcells cells = phi_subcells<stored>(steps, load<vf>(number + at), below, vi{},
                                                candidates.scale[candidate]);
    bits += bit_length(cells.spare);
  }
  return to_float(bits);
}

// Estimated positions for two scales, in the units of ScanTable. `shared`: the segment of the first
// and smaller scale says which cubic both use.
template <bool shared>
PHIQUANT_INLINE void find_positions(const ScanTable& table, vf size, const float reciprocal[2],
                                    vf position[2]) {
  vf t[2];
  vi place[2];
  for (int i = 0; i < 2; i++) t[i] = multiply_add(size, splat(reciprocal[i]), splat(table.offset));
  for (int i = 0; i < 2; i++) place[i] = (vi)t[shared ? 0 : i] >> kScanShift;
  for (int i = 0; i < 2; i++) position[i] = lookup(table.coefficient[kScanDegree], place[i]);
  for (int power = kScanDegree - 1; power >= 0; power--) {
    for (int i = 0; i < 2; i++) {
      const vf coefficient = lookup(table.coefficient[power], place[i]);
      position[i] = multiply_add(position[i], t[i], coefficient);
    }
  }
}

// Both signs of one bend: the candidates `at`, the first of which has the smaller scale.
template <int deviation_bits, bool weighted, Priced priced>
PHIQUANT_INLINE void scan_bend(const PhiSearch& search, const Group& group,
                               const Candidates& candidates, const int at[2], Scan* out) {
  // Bits of remainders are known only where sub-cells are certain, which two cubics make likelier.
  constexpr bool shared = priced == Priced::kNone;
  constexpr float kMagic =
      0x1.8p23f;  // a sum with it has no fraction; its low bits are the integer
  vf index[2][kParts]{}, deepest[2][kParts]{}, furthest[2]{};
  alignas(64) float number[2][kLargestGroup];
  const ScanTable& table = search.scan[at[0] / 2];
  const float reciprocal[2] = {candidates.reciprocal[at[0]], candidates.reciprocal[at[1]]};
  for (int base = 0; base < search.layout.group_size; base += kSumLanes) {
    for (int part = 0; part < kParts; part++) {
      const int here = base + part * kLanes;
      const vf weight = load<vf>(group.size + here), guess = load<vf>(group.guess + here);
      vf position[2];
      find_positions<shared>(table, guess, reciprocal, position);
      for (int i = 0; i < 2; i++) {
        const vf shifted = position[i] + splat(kMagic), n = shifted - splat(kMagic);
        furthest[i] = larger_size(furthest[i], position[i] - n);
        vf level = splat(table.at_centre[3]);
        for (int power = 2; power >= 0; power--)
          level = multiply_add(level, n, splat(table.at_centre[power]));
        const vf error = multiply_add(weight, splat(-reciprocal[i]), level);
        const vf counted = weighted ? error * load<vf>(group.importance + here) : error;
        deepest[i][part] = multiply_add(error, counted, deepest[i][part]);
        if (priced != Priced::kNone) store(number[i] + here, n);
        if constexpr (deviation_bits > 0) {
          const vf cell = lookup(table.level, (vi)shifted >> (deviation_bits - 1));
          const vf off = multiply_add(weight, splat(-reciprocal[i]), cell);
          const vf heavy = weighted ? off * load<vf>(group.importance + here) : off;
          index[i][part] = multiply_add(off, heavy, index[i][part]);
        }
      }
    }
  }
  for (int i = 0; i < 2; i++) {
    out->index[at[i]] = sum_parts(index[i]);
    out->deepest[at[i]] = sum_parts(deepest[i]);
    if constexpr (priced != Priced::kNone) {
      out->bits[at[i]] = scan_bits<priced>(search, group, candidates, at[i], number[i]);
    }
    out->doubtful[at[i]] =
        static_cast<float>(__builtin_popcount(lanes_of(furthest[i] > splat(table.certain))));
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
  return group.importance == nullptr
             ? scan_group<deviation_bits, false>(search, group, candidates, out)
             : scan_group<deviation_bits, true>(search, group, candidates, out);
}

PHIQUANT_INLINE bool is_priced(const EncodeTask& task) {
  return task.prices != nullptr && task.fit == Fit::kJoint;
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
                     : scan_lossy<4>(search, group, candidates, out);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
