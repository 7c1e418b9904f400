// A first pass over all candidates of a group: bounds of their scores from cheap estimates. The
// candidates that may be the best are left to exact scoring (score.h), so that the choice does not
// depend on how an instruction set rounds here.
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
  alignas(64) float doubtful[kCandidates];  // how many lanes hold weights near an edge
};

struct Bounds {
  alignas(64) float low[kCandidates];
  alignas(64) float high[kCandidates];
};

PHIQUANT_INLINE vf sum_parts(const vf parts[kParts]) {
  vf sum = parts[0];
  for (int i = 1; i < kParts; i++) sum += parts[i];
  return sum;
}

// Both signs of one bend: the candidates `at`, the first of which has the smaller scale. It says
// which segment's cubic both use.
template <int deviation_bits, bool weighted>
PHIQUANT_INLINE void scan_bend(const ScanTable& table, const Group& group, int size,
                               const float scale[2], const int at[2], Scan* out) {
  constexpr float kMagic = 0x1.8p23f;  // a sum with it has no fraction; its low bits are the integer
  vf index[2][kParts]{}, deepest[2][kParts]{}, furthest[2]{};
  const float reciprocal[2] = {1.0f / scale[0], 1.0f / scale[1]};
  for (int base = 0; base < size; base += kSumLanes) {
    for (int part = 0; part < kParts; part++) {
      const int here = base + part * kLanes;
      const vf weight = load<vf>(group.size + here), guess = load<vf>(group.guess + here);
      vf t[2], position[2];
      for (int i = 0; i < 2; i++)
        t[i] = multiply_add(guess, splat(reciprocal[i]), splat(table.offset));
      const vi place = (vi)t[0] >> kScanShift;
      const vf highest = lookup(table.coefficient[kScanDegree], place);
      position[0] = position[1] = highest;
      for (int power = kScanDegree - 1; power >= 0; power--) {
        const vf coefficient = lookup(table.coefficient[power], place);
        for (int i = 0; i < 2; i++) position[i] = multiply_add(position[i], t[i], coefficient);
      }
      for (int i = 0; i < 2; i++) {
        const vf shifted = position[i] + splat(kMagic), n = shifted - splat(kMagic);
        furthest[i] = larger_size(furthest[i], position[i] - n);
        vf level = splat(table.at_centre[3]);
        for (int power = 2; power >= 0; power--)
          level = multiply_add(level, n, splat(table.at_centre[power]));
        const vf error = multiply_add(weight, splat(-reciprocal[i]), level);
        const vf counted = weighted ? error * load<vf>(group.importance + here) : error;
        deepest[i][part] = multiply_add(error, counted, deepest[i][part]);
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
    out->doubtful[at[i]] = static_cast<float>(
        __builtin_popcount(lanes_of(furthest[i] > splat(table.certain))));
  }
}

template <int deviation_bits, bool weighted>
static void scan_group(const PhiSearch& search, const Group& group, const Candidates& candidates,
                       Scan* out) {
  const int size = search.layout.group_size;
  for (int bend = 0; bend < kBendCount; bend++) {
    const float* scale = candidates.scale + 2 * bend;
    const int swapped = scale[1] < scale[0] ? 1 : 0;
    const float ascending[2] = {scale[swapped], scale[1 - swapped]};
    const int at[2] = {2 * bend + swapped, 2 * bend + 1 - swapped};
    scan_bend<deviation_bits, weighted>(search.scan[bend], group, size, ascending, at, out);
  }
}

PHIQUANT_INLINE void scan(const PhiSearch& search, const Group& group,
                          const Candidates& candidates, Scan* out) {
  const bool weighted = group.importance != nullptr;
  switch (search.layout.deviation_bits) {
    case 0:
      return weighted ? scan_group<0, true>(search, group, candidates, out)
                      : scan_group<0, false>(search, group, candidates, out);
    case 2:
      return weighted ? scan_group<2, true>(search, group, candidates, out)
                      : scan_group<2, false>(search, group, candidates, out);
    default:
      return weighted ? scan_group<4, true>(search, group, candidates, out)
                      : scan_group<4, false>(search, group, candidates, out);
  }
}

// The sums over the lanes of kLanes vectors, one a lane.
PHIQUANT_INLINE vf sums_of(const vf* vectors) {
  vf sum[kLanes];
  for (int i = 0; i < kLanes; i++) sum[i] = vectors[i];
  for (int left = kLanes / 2; left > 0; left /= 2) {
    for (int i = 0; i < left; i++) sum[i] = pair_sums(sum[2 * i], sum[2 * i + 1]);
  }
  return sum[0];
}

// A sum of squared errors is off by no more than this share of itself, and this times the number
// of weights (and the largest importance): an error is off by less than 2^-20 of a level below 1.2
// in fp32, here and in exact scoring, and 2 |a| |b| <= share a^2 + b^2 / share.
inline constexpr float kScanShare = 0x1p-11f;
inline constexpr float kScanSlack = 0x1p-40f * 0x1p11f * 1.44f * 4;
// Scores are products of three sums in fp32.
inline constexpr float kScanRounding = 0x1p-18f;

// What a candidate's sum of squared errors is at least and at most.
struct Range {
  vf low, high;
};

PHIQUANT_INLINE Range range_of(vf sum, vf slip, float slack) {
  const vf away = sum * kScanShare + slip + slack;
  return {maximum(sum - away, vf{}), sum + away};
}

// Scores' bounds, in units of the first candidate's scale.
PHIQUANT_INLINE void bound_scores(const PhiSearch& search, const Group& group, Fit fit,
                                  const Candidates& candidates, const Scan& scanned, Bounds* out) {
  const float heaviest = group.importance == nullptr ? 1.0f : 2.0f;
  const float slips = static_cast<float>(search.layout.group_size / kLanes) * heaviest;
  const float slack = kScanSlack * static_cast<float>(search.layout.group_size) * heaviest;
  const float unit = 1.0f / candidates.scale[0];
  for (int at = 0; at < kCandidates; at += kLanes) {
    const vf doubtful = load<vf>(scanned.doubtful + at) * slips;
    const vf scale = load<vf>(candidates.scale + at) * unit, square = scale * scale;
    Range range = range_of(sums_of(scanned.deepest + at),
                           doubtful * load<vf>(search.deepest_slip + at), slack);
    if (search.layout.deviation_bits > 0 && fit != Fit::kDeviation) {
      const Range index = range_of(sums_of(scanned.index + at),
                                   doubtful * load<vf>(search.index_slip + at), slack);
      if (fit == Fit::kIndex) {
        range = index;
      } else {
        range.low = range.low * (index.low * index.low) * (square * square);
        range.high = range.high * (index.high * index.high) * (square * square);
      }
    }
    store(out->low + at, range.low * square * (1 - kScanRounding));
    store(out->high + at, range.high * square * (1 + kScanRounding));
  }
}

// The candidates, as bits, whose score may be the smallest.
PHIQUANT_INLINE uint32_t possible(const Bounds& bounds) {
  vf least = load<vf>(bounds.high);
  for (int at = kLanes; at < kCandidates; at += kLanes)
    least = minimum(least, load<vf>(bounds.high + at));
  const vf limit = splat(-lanes_maximum(-least));
  uint32_t found = 0;
  for (int at = 0; at < kCandidates; at += kLanes)
    found |= lanes_of(load<vf>(bounds.low + at) <= limit) << at;
  return found;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
