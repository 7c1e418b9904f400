// What encoding knows while it searches the scale word of one group.
#pragma once

#include "subcells.h"

namespace phiquant::cpu::PHIQUANT_ISA {

// Whether this instruction set scans in 16 bits: as scan_halves_avx512.h.
#if defined(PHIQUANT_SCAN_HALVES)
inline constexpr bool kScansHalves = true;
#else
inline constexpr bool kScansHalves = false;
#endif

inline constexpr int kCandidates = 2 * kBendCount;  // bend by bend, the positive sign first

struct Group {
  alignas(64) float weight[kLargestGroup];     // padded with 0
  alignas(64) float size[kLargestGroup];       // magnitudes
  alignas(64) float guess[kLargestGroup];      // magnitudes kept off zero, for the inverse only
  alignas(64) int32_t counted[kLargestGroup];  // mask: not padding
  const float* importance;                     // null if all are 1
  float above, below;                          // the largest weight of each direction, >= 0
  float unit;                                  // a power of two that keeps squares in range
  bool whole;                                  // no padding
  bool plain;                                  // unit is 1 and nothing is near fp32's borders
};

struct Candidates {
  alignas(64) float scale[kCandidates];  // positive
  alignas(64) float reciprocal[kCandidates];
  alignas(64) float negated[kCandidates];  // reciprocals: vectors are filled from memory at no cost
  alignas(64) int32_t word[kCandidates];   // magnitude bits, without sign and bend
  alignas(64) int32_t covered[kCandidates];  // whether every weight is inside of the grid
  bool all_covered;
};

// Which dtype's remainders have a price, if any.
enum class Priced { kFloat32, kBFloat16, kFloat16, kNone };

// Of one candidate word: sums of squared errors of both tiers, and bits of remainders.
struct Errors {
  double index, deepest;
  int64_t bits;
};

// Estimates of one candidate's sums over lanes, relative to its scale.
struct Scan {
  alignas(64) vf index[kCandidates];
  alignas(64) vf deepest[kCandidates];
  alignas(64) vf bits[kCandidates];           // of remainders, where they have a price
  alignas(64) int32_t doubtful[kCandidates];  // how many weights may be near an edge
};

PHIQUANT_INLINE bool is_priced(const EncodeTask& task) {
  return task.prices != nullptr && task.fit == Fit::kJoint;
}

// The phi-grid of one layout.
struct PhiSearch {
  Layout layout;
  Curve curve;
  const Inverse* inverse;
  const ScanTable* scan;
  // The ends of the grid for every candidate.
  alignas(64) float top[kCandidates];
  alignas(64) float bottom[kCandidates];
  // By how much the first pass may be off, for every candidate.
  alignas(64) float index_share[kCandidates]{};
  alignas(64) float index_slack[kCandidates]{};
  alignas(64) float index_slip[kCandidates]{};
  alignas(64) float deepest_share[kCandidates]{};
  alignas(64) float deepest_slack[kCandidates]{};
  // Of HalvesTable, if `in_halves`: whether groups are scanned by it.
  alignas(64) float halves_unit[kCandidates]{};
  alignas(64) float index_square[kCandidates]{};  // what squares of numbers are multiplied with
  alignas(64) float deepest_square[kCandidates]{};
  bool in_halves;
  int32_t zero_code;  // the code of positions just above 0, or of position 0 without deviation
  int32_t last_code;
  float near_edge;  // an estimate this close to an edge, in sub-cells, may be on its wrong side

  PHIQUANT_MEMBER explicit PhiSearch(const EncodeTask& task)
      : layout(task.layout), curve(Curve::of(task.layout)), inverse(task.inverse), scan(task.scan) {
    const int bends = bend_count(layout), d = layout.deviation_bits, half = half_of(layout);
    in_halves = kScansHalves && scan != nullptr && task.importance == nullptr && !is_priced(task);
    for (int i = 0; i < bends && in_halves; i++) in_halves = scan[i].halves.unit > 0;
    for (int i = 0; i < kCandidates; i++) {
      const int bend = i / 2 < bends ? i / 2 : bends - 1;
      top[i] = task.ends[2 * bend];
      bottom[i] = task.ends[2 * bend + 1];
      if (scan != nullptr) set_doubts(i, scan[bend]);
    }
    zero_code = d == 0 ? half - 1 : ((2 * half - 1) << d) / 2;
    last_code = (1 << code_bits(layout)) - 1;
    near_edge = kInverseError * static_cast<float>(half << d);
  }

  PHIQUANT_MEMBER void set_doubts(int i, const ScanTable& table) {
    const SumDoubts& doubts = in_halves ? table.halves.doubts : table.doubts;
    index_share[i] = doubts.index_share;
    index_slack[i] = doubts.index_slack;
    index_slip[i] = doubts.index_slip;
    deepest_share[i] = doubts.deepest_share;
    deepest_slack[i] = doubts.deepest_slack;
    halves_unit[i] = table.halves.unit;
    index_square[i] = table.halves.square;
    deepest_square[i] = table.halves.deepest_square;
  }
};

PHIQUANT_INLINE vf load_weights(Dtype dtype, const uint8_t* from, int at) {
  if (dtype == Dtype::kFloat32) return load<vf>(reinterpret_cast<const float*>(from) + at);
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(from) + at;
  return dtype == Dtype::kBFloat16 ? (vf)(widen(bits) << 16) : halves_to_floats(bits);
}

// The power of two, from 2^-126 to 2^126, that brings `size` to [1/2, 1).
PHIQUANT_INLINE float normaliser(float size) {
  uint32_t bits;
  std::memcpy(&bits, &size, sizeof bits);
  int exponent = static_cast<int>(bits >> 23) - 126;
  if (bits >> 23 == 0) exponent = -126;
  if (size == 0) exponent = 0;
  return power_of_two(exponent < -126 ? 126 : exponent > 126 ? -126 : -exponent);
}

// Whether the first pass bounds errors from below alone.
PHIQUANT_INLINE bool scans_least(const PhiSearch& search) {
  return search.in_halves && search.layout.deviation_bits > 0;
}

// `count` weights of dtype at `from`, the rest of the group is padding. False if one is not finite;
// it is taken for 0.
PHIQUANT_INLINE bool load_group(const Layout& layout, Dtype dtype, const uint8_t* from,
                                int64_t count, Group* group) {
  alignas(64) uint8_t padded[kLargestGroup * 4];
  if (count < layout.group_size) {
    const size_t bytes = static_cast<size_t>(count) * (dtype == Dtype::kFloat32 ? 4 : 2);
    std::memset(padded, 0, sizeof padded);
    std::memcpy(padded, from, bytes);
    from = padded;
  }
  vf above{}, below{};
  vi infinite{};
  for (int at = 0; at < layout.group_size; at += kLanes) {
    const vf given = load_weights(dtype, from, at);
    const vi special = dtype == Dtype::kFloat16 ? ~(absolute(given) < 65536.0f)
                                                : (vi)absolute(given) >= 0x7F800000;
    const vf weight = (vf)((vi)given & ~special), size = absolute(weight);
    infinite |= special;
    store(group->counted + at, lane_numbers() + at < static_cast<int32_t>(count));
    above = maximum(above, weight);
    below = maximum(below, -weight);
    store(group->weight + at, weight);
    store(group->size + at, size);
  }
  group->whole = count == layout.group_size;
  group->above = lanes_maximum(above);
  group->below = lanes_maximum(below);
  return !any(infinite);
}

// The smallest words that cover the group, as smallest_words of the reference.
PHIQUANT_INLINE void smallest_words(const PhiSearch& search, const Group& group, Candidates* out) {
  constexpr float kSmallest = 0x1p-14f, kLargest = 0x1.fep15f;
  const vf unit = splat(power_of_two(search.layout.exponent));
  const vf per_unit = splat(power_of_two(-search.layout.exponent));
  alignas(64) int32_t odd[kCandidates];
  for (int i = 0; i < kCandidates; i++) odd[i] = -(i & 1);
  vi covered = vi{} - 1;
  for (int i = 0; i < kCandidates; i += kLanes) {
    const vi negative = load<vi>(odd + i);
    const vf above = splat(group.above), below = splat(group.below);
    const vf long_end = negative ? below : above, short_end = negative ? above : below;
    const vf top = load<vf>(search.top + i), bottom = load<vf>(search.bottom + i);
    const vf needed = maximum(long_end / top, short_end / bottom) * per_unit;
    // A float with 7 mantissa bits is an fp32 whose low 16 bits are zero: round up to the next.
    vf rounded = (vf)(((vi)needed + 0xFFFF) & ~0xFFFF);
    rounded = minimum(maximum(rounded, splat(kSmallest)), splat(kLargest));
    const vf first = rounded * unit;
    const vi short_by_one = (first * top < long_end) | (first * bottom < short_end);
    rounded = minimum((vf)((vi)rounded - (short_by_one << 16)), splat(kLargest));
    const vf scale = rounded * unit;
    store(out->scale + i, scale);
    const vf reciprocal = 1.0f / scale;
    store(out->reciprocal + i, reciprocal);
    store(out->negated + i, -reciprocal);
    const vi inside = (scale * top >= long_end) & (scale * bottom >= short_end);
    covered &= inside;
    store(out->covered + i, inside);
    store(out->word + i, ((vi)rounded - static_cast<int32_t>(kWordBias)) >> kWordShift);
  }
  out->all_covered = !any(~covered);
}

// The candidates of a loaded group, and what scoring them takes.
PHIQUANT_INLINE void prepare_group(const PhiSearch& search, Group* group, Candidates* candidates) {
  smallest_words(search, *group, candidates);
  const float largest = group->above > group->below ? group->above : group->below;
  vf scale = load<vf>(candidates->scale);
  for (int i = kLanes; i < kCandidates; i += kLanes)
    scale = maximum(scale, load<vf>(candidates->scale + i));
  group->plain = largest >= 0x1p-30f && largest <= 0x1p30f && !any(scale > 0x1p30f);
  group->unit = 1.0f;
  if (!group->plain) {
    // Errors are no larger than a weight or a scale; scales may be far above the weights.
    const float largest_scale = lanes_maximum(scale);
    group->unit = normaliser(largest > largest_scale ? largest : largest_scale);
  }
  const float floor = largest * kGuessFloor;
  for (int at = 0; at < search.layout.group_size; at += kLanes) {
    store(group->guess + at, maximum(load<vf>(group->size + at), splat(floor)));
  }
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
