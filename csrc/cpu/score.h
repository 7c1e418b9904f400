// Errors of one group for one candidate word, and its codes. All paths give the same errors to the
// bit, on every instruction set: fp32, in 16 lanes, summed in one order.
#pragma once

#include "table_bits.h"

namespace phiquant::cpu::PHIQUANT_ISA {

struct Trial {
  int bend;
  float line, cubic;
  const Inverse* inverse;
  float scale;    // positive
  bool negative;  // the word's sign
  bool plain;     // the estimate of positions is good
};

// Estimated positions of magnitudes in sub-cells (plus 1/2 without deviation): at least 0.
PHIQUANT_INLINE vf estimate(const Inverse& inverse, vf size, float reciprocal) {
  const vf t = multiply_add(size, splat(reciprocal), splat(kInverseOffset));
  const vi place = (vi)t >> kSegmentShift;
  const vf u = t - (vf)((vi)t & ~((1 << kSegmentShift) - 1));
  vf result = lookup(inverse.coefficient[kDegree], place);
  for (int i = kDegree - 1; i >= 0; i--)
    result = multiply_add(result, u, lookup(inverse.coefficient[i], place));
  return result;
}

PHIQUANT_INLINE vf value(const Trial& trial, vf position) {
  return ((position * position) * trial.cubic + trial.line) * position;
}

// What decoding gives, saturation included.
PHIQUANT_INLINE vf decoded(const Trial& trial, vf position) {
  const vf largest = splat(kLargestFloat);
  return maximum(minimum(value(trial, position) * trial.scale, largest), -largest);
}

PHIQUANT_INLINE vf sub_cell_width(const Layout& layout) {
  return splat(power_of_two(-layout.deviation_bits));
}

PHIQUANT_INLINE vf edge(const PhiSearch& search, const Trial& trial, vi code) {
  const float first = static_cast<float>(half_of(search.layout)) - 0.5f;
  return value(trial, to_float(code) * sub_cell_width(search.layout) - first) * trial.scale;
}

// -0.0 sorts below +0.0: as the number below it, since no other lies between them.
PHIQUANT_INLINE vf below_zero(vf weight) {
  return (vi)weight == INT32_MIN ? vf{} - 0x1p-149f : weight;
}

// The reference's binary search: the largest code whose lower edge does not exceed the weight.
PHIQUANT_INLINE vi search_codes(const PhiSearch& search, const Trial& trial, vf weight) {
  vi code{};
  for (int bit = code_bits(search.layout) - 1; bit >= 0; bit--) {
    const vi higher = code | 1 << bit;
    code = edge(search, trial, higher) <= weight ? higher : code;
  }
  return code;
}

// The same from an estimate, which is off by at most one where the trial is plain.
PHIQUANT_INLINE vi find_codes(const PhiSearch& search, const Trial& trial, vf turned) {
  const vf weight = below_zero(turned);
  if (!trial.plain) return search_codes(search, trial, weight);
  const vi n = truncate(estimate(*trial.inverse, absolute(weight), 1.0f / trial.scale));
  const int mirrored = search.layout.deviation_bits == 0 ? 0 : 1;
  const vi last = splat(search.last_code);
  vi code = search.zero_code + (weight < 0.0f ? -n - mirrored : n);
  code = code < 0 ? vi{} : code > last ? last : code;
  const vi up = (edge(search, trial, code + 1) <= weight) & (code < last);
  const vi down = (edge(search, trial, code) > weight) & (code > 0);
  return code - up + down;
}

// The codes of weights by their sub-cells' numbers from zero outwards. Below zero the number of a
// sub-cell is mirrored, that of a cell around zero is negated.
PHIQUANT_INLINE void codes_of(const PhiSearch& search, const Group& group, const Trial& trial,
                              const int32_t* number, int32_t* codes) {
  const int32_t negated = search.layout.deviation_bits == 0 ? -1 : 0;
  const vi turned = vi{} - (trial.negative ? 1 : 0);
  for (int at = 0; at < search.layout.group_size; at += kLanes) {
    const vi n = load<vi>(number + at), below = load<vi>(group.weight + at) >> 31 ^ turned;
    store(codes + at, search.zero_code + ((n ^ below) - (below & negated)));
  }
}

// The numbers of the sub-cells of all weights, which the trial covers, from estimates alone. False
// if one is so near to an edge, such as the grid's first, that its sub-cell is in doubt.
PHIQUANT_INLINE bool quick_numbers(const PhiSearch& search, const Group& group, const Trial& trial,
                                   int32_t* number) {
  const float reciprocal = 1.0f / trial.scale;
  vf furthest{};
  for (int at = 0; at < search.layout.group_size; at += kLanes) {
    const vf place = estimate(*trial.inverse, load<vf>(group.guess + at), reciprocal);
    const vi n = truncate(place);
    furthest = larger_size(furthest, place - (to_float(n) + 0.5f));
    store(number + at, n);
  }
  return !any(furthest > 0.5f - search.near_edge);
}

template <bool weighted>
PHIQUANT_INLINE vf square(const Group& group, int at, vf error) {
  const vf squared = error * error;
  return weighted ? squared * load<vf>(group.importance + at) : squared;
}

// The sum of squares of one group's errors. Ordinary groups are summed as quick_errors does it;
// where squares may leave fp32's range, in fp64.
template <bool weighted>
PHIQUANT_INLINE double sum_squares(const Group& group, int size, const float* errors) {
  if (group.plain) {
    vf sum[kParts]{};
    for (int at = 0; at < size; at += kLanes) {
      sum[at / kLanes % kParts] += square<weighted>(group, at, load<vf>(errors + at));
    }
    return sum_lanes(sum);
  }
  double sum = 0;
  for (int i = 0; i < size; i++) {
    const double error = errors[i];
    sum += error * error * (weighted ? group.importance[i] : 1.0f);
  }
  return sum;
}

// The bits of remainders of weights in these sub-cells of the phi-grid.
template <Priced priced>
PHIQUANT_INLINE vi widths(const Steps& steps, const Trial& trial, const Sides& sides) {
  if constexpr (priced == Priced::kNone) return vi{};
  constexpr Dtype stored = static_cast<Dtype>(priced);
  return bit_length(phi_subcells<stored>(steps, sides, trial.scale).spare);
}

// From exact codes: for any group, scale and weight.
template <bool index, bool deepest, bool weighted, Priced priced>
static Errors exact_errors(const PhiSearch& search, const Group& group, const Trial& trial) {
  const Layout& layout = search.layout;
  const float first = static_cast<float>(half_of(layout)) - 0.5f;
  const Steps steps = Steps::of(layout, trial.line, trial.cubic);
  alignas(64) float of_index[kLargestGroup], of_deepest[kLargestGroup];
  vi bits{};
  for (int at = 0; at < layout.group_size; at += kLanes) {
    const vf weight = load<vf>(group.weight + at);
    const vf turned = trial.negative ? -weight : weight;
    const vi code = find_codes(search, trial, turned);
    const vf centre = (to_float(code) + 0.5f) * sub_cell_width(layout) - first;
    const vf cell = to_float(code >> layout.deviation_bits) - (first - 0.5f);
    bits += widths<priced>(steps, trial, sides_of(layout, code)) & load<vi>(group.counted + at);
    store(of_deepest + at, (decoded(trial, centre) - turned) * group.unit);
    store(of_index + at, (decoded(trial, cell) - turned) * group.unit);
  }
  return {index ? sum_squares<weighted>(group, layout.group_size, of_index) : 0,
          deepest ? sum_squares<weighted>(group, layout.group_size, of_deepest) : 0,
          sum_integers(bits)};
}

// The same of a group, by its sub-cells' numbers from zero outwards. No covered weight reaches the
// last sub-cell: it begins at K + 1/4 or above.
template <Priced priced>
PHIQUANT_INLINE int64_t bits_of(const PhiSearch& search, const Group& group, const Trial& trial,
                                const Steps& steps, const int32_t* number) {
  if constexpr (priced == Priced::kNone) return 0;
  vi bits{};
  if (group.whole && table_bits<priced, 0>(search.layout, trial.scale, trial.bend, number, &bits)) {
    return sum_integers(bits);
  }
  const vi turned = vi{} - (trial.negative ? 1 : 0);
  for (int at = 0; at < search.layout.group_size; at += kLanes) {
    const Sides sides{load<vi>(number + at), load<vi>(group.weight + at) >> 31 ^ turned, vi{}};
    bits += widths<priced>(steps, trial, sides) & load<vi>(group.counted + at);
  }
  return sum_integers(bits);
}

// From estimated positions of magnitudes, the curve being odd, whose sub-cells' numbers it leaves.
// False if a weight is so near to an edge that its sub-cell is in doubt.
template <bool index, bool deepest, bool weighted, Priced priced>
PHIQUANT_INLINE bool quick_errors(const PhiSearch& search, const Group& group, const Trial& trial,
                                  int32_t* number, Errors* out) {
  const int d = search.layout.deviation_bits, half_cell = d == 0 ? 0 : 1 << (d - 1);
  const Steps steps = Steps::of(search.layout, trial.line, trial.cubic);
  const float reciprocal = 1.0f / trial.scale;
  vf index_sum[kParts]{}, deepest_sum[kParts]{}, furthest{};
  for (int at = 0; at < search.layout.group_size; at += kSumLanes) {
    for (int part = 0; part < kParts; part++) {
      const int here = at + part * kLanes;
      const vf size = load<vf>(group.size + here);
      const vf place = estimate(*trial.inverse, load<vf>(group.guess + here), reciprocal);
      const vi whole = truncate(place);
      const vf centre = to_float(whole) + 0.5f;
      furthest = maximum(furthest, absolute(place - centre));
      store(number + here, whole);
      if (deepest) {
        const vf level = ((centre * centre) * steps.cubic + steps.line) * centre;
        deepest_sum[part] += square<weighted>(group, here, level * trial.scale - size);
      }
      if (index) {
        const vf level = value(trial, to_float((whole + half_cell) >> d));
        index_sum[part] += square<weighted>(group, here, level * trial.scale - size);
      }
    }
  }
  const int64_t bits = bits_of<priced>(search, group, trial, steps, number);
  *out = {sum_lanes(index_sum), sum_lanes(deepest_sum), bits};
  return !any(furthest > 0.5f - search.near_edge);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
