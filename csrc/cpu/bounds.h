// Bounds of candidates' scores from the first pass. The candidates that may be the best are left to
// exact scoring (score.h), so that the choice does not depend on how an instruction set rounds
// here.
#pragma once

#include "power.h"
#include "scan.h"

namespace phiquant::cpu::PHIQUANT_ISA {

struct Bounds {
  alignas(64) float low[kCandidates];
  alignas(64) float high[kCandidates];
};

// The sums over the lanes of kLanes vectors, one a lane.
PHIQUANT_INLINE vf sums_of(const vf* vectors) {
  vf sum[kLanes];
  for (int i = 0; i < kLanes; i++) sum[i] = vectors[i];
#if PHIQUANT_BYTES == 64
  for (int i = 0; i < 8; i++) sum[i] = add_halves<8>(sum[i], sum[i + 8]);
  for (int i = 0; i < 4; i++) sum[i] = add_halves<4>(sum[i], sum[i + 4]);
  for (int i = 0; i < 2; i++) sum[i] = add_halves<2>(sum[i], sum[i + 2]);
  return add_halves<1>(sum[0], sum[1]);
#else
  for (int left = kLanes / 2; left > 0; left /= 2) {
    for (int i = 0; i < left; i++) sum[i] = pair_sums(sum[2 * i], sum[2 * i + 1]);
  }
  return sum[0];
#endif
}

// Scores are products of three sums in fp32.
inline constexpr float kScanRounding = 0x1p-18f;

// What a candidate's sum of squared errors is at least and at most.
struct Range {
  vf low, high;
};

PHIQUANT_INLINE Range range_of(vf sum, vf share, vf slip) {
  const vf away = sum * share + slip;
  return {maximum(sum - away, vf{}), sum + away};
}

// What remainders multiply scores by, relative to the candidate with the fewest bits. Beyond 2^90
// no candidate has a chance: sums lie within 2^-18 and 2^8, and three are multiplied.
// `doubtful` weights may have any number of bits. Returns the fewest bits.
PHIQUANT_INLINE int64_t price_scores(const EncodeTask& task, const Scan& scanned, float heaviest,
                                     Bounds* factors) {
  constexpr int32_t kFurthest = 90 * 32;
  const float widest = task.dtype == Dtype::kFloat32 ? 32 : 16;
  alignas(64) float powers[kSegments];
  for (int i = 0; i < kSegments; i++) powers[i] = static_cast<float>(task.prices[i]);
  vf fewest = splat(kLargestFloat);
  for (int at = 0; at < kCandidates; at += kLanes) {
    const vf bits = sums_of(scanned.bits + at);
    store(factors->low + at, bits);
    fewest = minimum(fewest, bits);
  }
  const vf least = splat(-lanes_maximum(-fewest));
  for (int at = 0; at < kCandidates; at += kLanes) {
    const vf bits = load<vf>(factors->low + at) - least,
             away = to_float(load<vi>(scanned.doubtful + at)) * (heaviest * widest);
    const auto factor = [&](vf fewer) {
      vi units = truncate(fewer) * task.price;
      units = units > kFurthest ? splat(kFurthest) : units < -kFurthest ? splat(-kFurthest) : units;
      return lookup(powers, units & 31) * (vf)((127 + (units >> 5)) << 23);
    };
    store(factors->low + at, factor(bits - away));
    store(factors->high + at, factor(bits + away));
  }
  return static_cast<int64_t>(least[0]);
}

// 1 as a score's bound: a power of the first candidate's scale, and the price of the fewest bits.
PHIQUANT_INLINE double bounds_unit(const PhiSearch& search, const EncodeTask& task,
                                   const Candidates& candidates, int64_t fewest) {
  const double scale = candidates.scale[0], square = scale * scale;
  if (task.fit != Fit::kJoint || search.layout.deviation_bits == 0) return square;
  const double cube = square * square * square;
  return is_priced(task) ? cube * power(task.prices, fewest * task.price) : cube;
}

// Scores' bounds, and their unit.
PHIQUANT_INLINE double bound_scores(const PhiSearch& search, const EncodeTask& task,
                                    const Group& group, const Candidates& candidates,
                                    const Scan& scanned, Bounds* out) {
  const Fit fit = task.fit;
  const bool priced = is_priced(task);
  const float heaviest = group.importance == nullptr ? 1.0f : 2.0f;
  const float weights = static_cast<float>(search.layout.group_size) * heaviest;
  const float unit = candidates.reciprocal[0];
  const bool index_only = fit == Fit::kIndex || search.layout.deviation_bits == 0;
  Bounds factors;
  const int64_t fewest = priced ? price_scores(task, scanned, heaviest, &factors) : 0;
  for (int at = 0; at < kCandidates; at += kLanes) {
    const vf scale = load<vf>(candidates.scale + at) * unit, square = scale * scale;
    Range range{};
    if (!index_only) {
      range = range_of(sums_of(scanned.deepest + at), load<vf>(search.deepest_share + at),
                       load<vf>(search.deepest_slack + at) * weights);
    }
    if (fit != Fit::kDeviation || index_only) {
      const vf slip = to_float(load<vi>(scanned.doubtful + at)) * heaviest;
      const vf slack = load<vf>(search.index_slack + at) * weights;
      vf sum = sums_of(scanned.index + at);
      if (search.in_halves) sum *= load<vf>(search.index_square + at);
      const Range index = range_of(sum, load<vf>(search.index_share + at),
                                   slip * load<vf>(search.index_slip + at) + slack);
      if (index_only) {
        range = index;
      } else {
        range.low = range.low * (index.low * index.low) * (square * square);
        range.high = range.high * (index.high * index.high) * (square * square);
      }
    }
    range.low *= square * (1 - kScanRounding);
    range.high *= square * (1 + kScanRounding);
    if (priced) {
      range.low *= load<vf>(factors.low + at);
      range.high *= load<vf>(factors.high + at);
    }
    store(out->low + at, range.low);
    store(out->high + at, range.high);
  }
  return bounds_unit(search, task, candidates, fewest);
}

// A group's candidates until the one with the smallest score is found.
struct Contest {
  alignas(64) float low[kCandidates];  // no score is lower, in units of `unit`
  double unit;
  uint32_t left;  // candidates, as bits, that may be the best and have not been scored
  int first;      // the likeliest of them
  int best;       // of those that have been scored,
  double lowest;  // and its score
  bool numbered;  // whether this one's sub-cells are known: in
  int kept;       // one of two lists of numbers, the other is for the next one
  alignas(64) int32_t number[2][kLargestGroup];

  // A bound above it is of no better candidate.
  PHIQUANT_MEMBER float limit(double score) const {
    return static_cast<float>(score / unit * (1 + kScanRounding));
  }
};

PHIQUANT_INLINE uint32_t candidates_within(const float* low, float limit) {
  uint32_t found = 0;
  for (int at = 0; at < kCandidates; at += kLanes)
    found |= lanes_of(load<vf>(low + at) <= splat(limit)) << at;
  return found;
}

PHIQUANT_INLINE float least_of(const float* candidates) {
  vf least = load<vf>(candidates);
  for (int at = kLanes; at < kCandidates; at += kLanes)
    least = minimum(least, load<vf>(candidates + at));
  return -lanes_maximum(-least);
}

// Where the first pass has bounded errors from below; no remainders, no importance.
PHIQUANT_INLINE void least_scores(const PhiSearch& search, const EncodeTask& task,
                                  const Candidates& candidates, const Scan& scanned, float* low) {
  const float weights = static_cast<float>(search.layout.group_size);
  const float unit = candidates.reciprocal[0];
  for (int at = 0; at < kCandidates; at += kLanes) {
    const vf scale = load<vf>(candidates.scale + at) * unit, square = scale * scale;
    const Range index =
        range_of(sums_of(scanned.index + at) * load<vf>(search.index_square + at),
                 load<vf>(search.index_share + at), load<vf>(search.index_slack + at) * weights);
    vf result = index.low * square;
    if (task.fit != Fit::kIndex) {
      const vf deepest =
          sums_of(scanned.deepest + at) * load<vf>(search.deepest_square + at) * square;
      result = task.fit == Fit::kDeviation ? deepest : deepest * (result * result);
    }
    store(low + at, result * (1 - kScanRounding));
  }
}

PHIQUANT_INLINE void start(Contest* contest) {
  contest->left = (1u << kCandidates) - 1;
  contest->best = 0;
  contest->lowest = __builtin_inf();
  contest->numbered = false;
  contest->kept = 0;
}

// All candidates, of whose scores nothing is known.
PHIQUANT_INLINE void open_contest(Contest* out) {
  start(out);
  for (float& low : out->low) low = 0;
  out->unit = 1;
}

// The candidates whose score may be the smallest.
PHIQUANT_INLINE void open_contest(const PhiSearch& search, const EncodeTask& task,
                                  const Group& group, const Candidates& candidates,
                                  const Scan& scanned, Contest* out) {
  start(out);
  if (scans_least(search)) {
    least_scores(search, task, candidates, scanned, out->low);
    out->unit = bounds_unit(search, task, candidates, 0);
  } else {
    Bounds bounds;
    out->unit = bound_scores(search, task, group, candidates, scanned, &bounds);
    std::memcpy(out->low, bounds.low, sizeof out->low);
    out->left = candidates_within(bounds.low, least_of(bounds.high));
  }
  out->first = __builtin_ctz(candidates_within(out->low, least_of(out->low)));
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
