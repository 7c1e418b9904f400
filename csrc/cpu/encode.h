// Weights to planes: the best scale word of every group, then the codes.
#pragma once

#include "codes.h"
#include "golden.h"
#include "scan.h"
#include "score.h"

namespace phiquant::cpu::PHIQUANT_ISA {

PHIQUANT_INLINE Trial trial_of(const PhiSearch& search, const Group& group,
                               const Candidates& candidates, int candidate) {
  const int bend = candidate / 2;
  return {search.curve.line[bend],
          search.curve.cubic[bend],
          search.inverse + bend,
          candidates.scale[candidate],
          (candidate & 1) != 0,
          group.plain && candidates.covered[candidate] != 0};
}

// The best of the candidates in a set of bits, the first of equals.
template <bool index, bool deepest, bool weighted, Priced priced>
static int choose(const PhiSearch& search, const EncodeTask& task, const Group& group,
                  const Candidates& candidates, uint32_t among) {
  int best = 0;
  double lowest = __builtin_inf();
  for (; among != 0; among &= among - 1) {
    const int i = __builtin_ctz(among);
    const Trial trial = trial_of(search, group, candidates, i);
    Errors errors;
    if (!trial.plain ||
        !quick_errors<index, deepest, weighted, priced>(search, group, trial, &errors)) {
      errors = exact_errors<index, deepest, weighted, priced>(search, group, trial);
    }
    const double score = score_of<index, deepest>(task, errors);
    if (score < lowest) {
      lowest = score;
      best = i;
    }
  }
  return best;
}

template <bool index, bool deepest, Priced priced>
PHIQUANT_INLINE int choose(const PhiSearch& search, const EncodeTask& task, const Group& group,
                           const Candidates& candidates, uint32_t among) {
  return group.importance == nullptr
             ? choose<index, deepest, false, priced>(search, task, group, candidates, among)
             : choose<index, deepest, true, priced>(search, task, group, candidates, among);
}

PHIQUANT_INLINE int choose(const PhiSearch& search, const EncodeTask& task, const Group& group,
                           const Candidates& candidates, uint32_t among) {
  if (task.fit == Fit::kIndex || search.layout.deviation_bits == 0) {
    return choose<true, false, Priced::kNone>(search, task, group, candidates, among);
  }
  if (task.fit == Fit::kDeviation) {
    return choose<false, true, Priced::kNone>(search, task, group, candidates, among);
  }
  if (task.prices == nullptr) {
    return choose<true, true, Priced::kNone>(search, task, group, candidates, among);
  }
  switch (task.dtype) {
    case Dtype::kFloat32:
      return choose<true, true, Priced::kFloat32>(search, task, group, candidates, among);
    case Dtype::kBFloat16:
      return choose<true, true, Priced::kBFloat16>(search, task, group, candidates, among);
    default:
      return choose<true, true, Priced::kFloat16>(search, task, group, candidates, among);
  }
}

// The candidates that may be the best, as bits.
PHIQUANT_INLINE uint32_t contenders(const PhiSearch& search, const EncodeTask& task,
                                    const Group& group, const Candidates& candidates) {
  constexpr uint32_t kAll = (1 << kCandidates) - 1;
  if (search.scan == nullptr || !group.plain || !candidates.all_covered || task.prices != nullptr)
    return kAll;
  Scan scanned;
  Bounds bounds;
  scan(search, group, candidates, &scanned);
  bound_scores(search, group, task.fit, candidates, scanned, &bounds);
  return possible(bounds);
}

// Codes of a group, and its scale word.
static int16_t encode_phi(const PhiSearch& search, const EncodeTask& task, Group* group,
                          int32_t* codes) {
  Candidates candidates;
  prepare_group(search, group, &candidates);
  const uint32_t among = contenders(search, task, *group, candidates);
  const int best = (among & (among - 1)) == 0 ? __builtin_ctz(among)
                                              : choose(search, task, *group, candidates, among);
  const Trial trial = trial_of(search, *group, candidates, best);
  for (int at = 0; at < search.layout.group_size; at += kLanes) {
    const vf weight = load<vf>(group->weight + at);
    store(codes + at, find_codes(search, trial, trial.negative ? -weight : weight));
  }
  return static_cast<int16_t>(candidates.word[best] | (trial.negative ? 0x8000 : 0) | best / 2);
}

PHIQUANT_INLINE void write_plane(uint8_t* plane, const Layout& layout, int64_t group, int bits,
                                 const int32_t* codes, int shift) {
  if (bits == 0) return;
  alignas(64) uint8_t bytes[kLargestGroup];
  const int32_t mask = (1 << bits) - 1;
  for (int i = 0; i < layout.group_size; i++) {
    bytes[i] = static_cast<uint8_t>(codes[i] >> shift & mask);
  }
  pack(bits, bytes, layout.group_size, plane + group * group_bytes(layout, bits));
}

PHIQUANT_INLINE void write_group(const EncodeTask& task, int64_t group, int64_t count, int16_t word,
                                 int32_t* codes) {
  const Layout& layout = task.layout;
  const int low = low_bits(layout);
  for (int64_t i = count; i < layout.group_size; i++) codes[i] = 0;
  write_plane(task.index, layout, group, layout.index_bits, codes, layout.deviation_bits);
  write_plane(task.deviation, layout, group, high_bits(layout), codes, low);
  write_plane(task.deviation_low, layout, group, low, codes, 0);
  task.scale[group] = word;
}

static bool encode_row(const EncodeTask& task, const PhiSearch& search, int64_t row) {
  const Layout& layout = task.layout;
  const int64_t groups = groups_of(layout), width = task.dtype == Dtype::kFloat32 ? 4 : 2;
  const uint8_t* from = static_cast<const uint8_t*>(task.weight) + row * layout.columns * width;
  Group group;
  alignas(64) int32_t codes[kLargestGroup];
  for (int64_t i = 0; i < groups; i++) {
    const int64_t column = i * layout.group_size, rest = layout.columns - column;
    const int64_t count = rest < layout.group_size ? rest : layout.group_size;
    const bool finite = load_group(layout, task.dtype, from + column * width, count, &group);
    if (!finite && !task.exact) return false;
    group.importance = task.importance == nullptr ? nullptr : task.importance + column;
    const int16_t word = layout.grid == GridName::kPhi ? encode_phi(search, task, &group, codes)
                                                       : encode_golden(search, task, group, codes);
    write_group(task, row * groups + i, count, word, codes);
  }
  return true;
}

static Status encode(const EncodeTask& task, int64_t begin, int64_t end) {
  const PhiSearch search(task);
  for (int64_t row = begin; row < end; row++) {
    if (!encode_row(task, search, row)) return Status::kNotFinite;
  }
  return Status::kOk;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
