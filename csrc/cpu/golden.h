// The golden grid's encoder: one bend, both signs, a binary search in a table of edges.
#pragma once

#include "power.h"
#include "search.h"

namespace phiquant::cpu::PHIQUANT_ISA {

template <bool index, bool deepest>
PHIQUANT_INLINE double score_of(const EncodeTask& task, const Errors& errors) {
  if (!deepest) return errors.index;
  if (!index) return errors.deepest;
  const double joint = errors.index * errors.index * errors.deepest;
  return task.prices == nullptr ? joint : joint * power(task.prices, errors.bits * task.price);
}

// The bits of a group's remainders.
template <Dtype stored>
PHIQUANT_INLINE int64_t golden_bits(const EncodeTask& task, const Group& group, float scale,
                                    const int32_t* codes) {
  vi bits{};
  for (int at = 0; at < task.layout.group_size; at += kLanes) {
    const Sides sides = sides_of(task.layout, load<vi>(codes + at));
    const Subcells cells = golden_subcells<stored>(task.layout, sides, task.edges, scale);
    bits += bit_length(cells.spare) & load<vi>(group.counted + at);
  }
  return sum_integers(bits);
}

PHIQUANT_INLINE int32_t golden_code(const EncodeTask& task, float turned, float scale) {
  // -0.0 sorts below +0.0, as in score.h
  const float weight = turned == 0 && __builtin_signbit(turned) ? -0x1p-149f : turned;
  int32_t code = 0;
  for (int bit = code_bits(task.layout) - 1; bit >= 0; bit--) {
    const int32_t higher = code | 1 << bit;
    if (task.edges[higher] * scale <= weight) code = higher;
  }
  return code;
}

// The error of a level as decoding gives it, saturation included.
PHIQUANT_INLINE float golden_error(float level, float scale, float weight, float unit) {
  const float decoded = level * scale;
  const float kept = decoded > kLargestFloat    ? kLargestFloat
                     : decoded < -kLargestFloat ? -kLargestFloat
                                                : decoded;
  return (kept - weight) * unit;
}

// Codes of a group for a signed scale, and their errors; one order of sums for all.
PHIQUANT_INLINE Errors golden_codes(const EncodeTask& task, const Group& group, float scale,
                                    bool negative, int32_t* codes) {
  Errors sum{0, 0, 0};
  for (int i = 0; i < task.layout.group_size; i++) {
    const float weight = negative ? -group.weight[i] : group.weight[i];
    const double importance = group.importance == nullptr ? 1.0 : group.importance[i];
    codes[i] = golden_code(task, weight, scale);
    const int32_t cell = codes[i] >> task.layout.deviation_bits;
    const double deepest = golden_error(task.levels[codes[i]], scale, weight, group.unit);
    const double index = golden_error(task.index_levels[cell], scale, weight, group.unit);
    sum.deepest += deepest * deepest * importance;
    sum.index += index * index * importance;
  }
  if (task.prices == nullptr) return sum;
  sum.bits = task.dtype == Dtype::kFloat32 ? golden_bits<Dtype::kFloat32>(task, group, scale, codes)
             : task.dtype == Dtype::kBFloat16
                 ? golden_bits<Dtype::kBFloat16>(task, group, scale, codes)
                 : golden_bits<Dtype::kFloat16>(task, group, scale, codes);
  return sum;
}

static int16_t encode_golden(const EncodeTask& task, const Group& group,
                             const Candidates& candidates, int32_t* codes) {
  const bool index_only = task.fit == Fit::kIndex || task.layout.deviation_bits == 0;
  double score[2];
  alignas(64) int32_t other[kLargestGroup];
  for (int sign = 0; sign < 2; sign++) {
    const Errors errors =
        golden_codes(task, group, candidates.scale[sign], sign != 0, sign == 0 ? codes : other);
    score[sign] = index_only                    ? score_of<true, false>(task, errors)
                  : task.fit == Fit::kDeviation ? score_of<false, true>(task, errors)
                                                : score_of<true, true>(task, errors);
  }
  if (!(score[1] < score[0])) return static_cast<int16_t>(candidates.word[0]);
  std::memcpy(codes, other, sizeof other);
  return static_cast<int16_t>(candidates.word[1] | 0x8000);
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
