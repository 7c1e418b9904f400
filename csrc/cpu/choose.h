// The choice of a group's scale word by exact scores.
#pragma once

#include "bounds.h"
#include "golden.h"
#include "score.h"

namespace phiquant::cpu::PHIQUANT_ISA {

inline constexpr uint32_t kEveryCandidate = (1 << kCandidates) - 1;

PHIQUANT_INLINE Trial trial_of(const PhiSearch& search, const Group& group,
                               const Candidates& candidates, int candidate) {
  const int bend = candidate / 2;
  return {bend,
          search.curve.line[bend],
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

}  // namespace phiquant::cpu::PHIQUANT_ISA
