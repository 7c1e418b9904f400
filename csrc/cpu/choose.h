// The choice of a group's scale word by exact scores.
#pragma once

#include "bounds.h"
#include "golden.h"
#include "score.h"

namespace phiquant::cpu::PHIQUANT_ISA {

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

// A candidate's score, and whether the numbers of its sub-cells are certain.
struct Score {
  double value;
  bool numbered;
};

template <bool index, bool deepest, bool weighted, Priced priced>
static Score score(const PhiSearch& search, const EncodeTask& task, const Group& group,
                   const Trial& trial, int32_t* number) {
  Errors errors;
  const bool quick = trial.plain && quick_errors<index, deepest, weighted, priced>(
                                        search, group, trial, number, &errors);
  if (!quick) errors = exact_errors<index, deepest, weighted, priced>(search, group, trial);
  return {score_of<index, deepest>(task, errors), quick};
}

template <bool index, bool deepest, Priced priced>
PHIQUANT_INLINE Score score(const PhiSearch& search, const EncodeTask& task, const Group& group,
                            const Trial& trial, int32_t* number) {
  return group.importance == nullptr
             ? score<index, deepest, false, priced>(search, task, group, trial, number)
             : score<index, deepest, true, priced>(search, task, group, trial, number);
}

PHIQUANT_INLINE Score score(const PhiSearch& search, const EncodeTask& task, const Group& group,
                            const Trial& trial, int32_t* number) {
  constexpr Priced kNone = Priced::kNone;
  if (task.fit == Fit::kIndex || search.layout.deviation_bits == 0) {
    return score<true, false, kNone>(search, task, group, trial, number);
  }
  if (task.fit == Fit::kDeviation) {
    return score<false, true, kNone>(search, task, group, trial, number);
  }
  if (task.prices == nullptr) return score<true, true, kNone>(search, task, group, trial, number);
  switch (task.dtype) {
    case Dtype::kFloat32:
      return score<true, true, Priced::kFloat32>(search, task, group, trial, number);
    case Dtype::kBFloat16:
      return score<true, true, Priced::kBFloat16>(search, task, group, trial, number);
    default:
      return score<true, true, Priced::kFloat16>(search, task, group, trial, number);
  }
}

// Scores a candidate; those that cannot reach the best score are out.
PHIQUANT_INLINE void try_candidate(const PhiSearch& search, const EncodeTask& task,
                                   const Group& group, const Candidates& candidates, int i,
                                   Contest* contest) {
  const Score found = score(search, task, group, trial_of(search, group, candidates, i),
                            contest->number[1 - contest->kept]);
  contest->left &= ~(1u << i);
  // The first of equals wins.
  const bool as_good = found.value == contest->lowest && i < contest->best;
  if (!(found.value < contest->lowest || as_good)) return;
  contest->best = i;
  contest->lowest = found.value;
  contest->numbered = found.numbered;
  contest->kept = 1 - contest->kept;
  contest->left &= candidates_within(contest->low, contest->limit(found.value));
}

// Leaves one candidate or those that may be better than the likeliest, which is scored then.
PHIQUANT_INLINE void begin_contest(const PhiSearch& search, const EncodeTask& task,
                                   const Group& group, const Candidates& candidates,
                                   Contest* contest) {
  if ((contest->left & (contest->left - 1)) != 0) {
    return try_candidate(search, task, group, candidates, contest->first, contest);
  }
  contest->best = __builtin_ctz(contest->left);
  contest->left = 0;
}

// Scores one more, if one is left.
PHIQUANT_INLINE void go_on(const PhiSearch& search, const EncodeTask& task, const Group& group,
                           const Candidates& candidates, Contest* contest) {
  if (contest->left == 0) return;
  try_candidate(search, task, group, candidates, __builtin_ctz(contest->left), contest);
}

PHIQUANT_INLINE int choose(const PhiSearch& search, const EncodeTask& task, const Group& group,
                           const Candidates& candidates, Contest* contest) {
  while (contest->left != 0) go_on(search, task, group, candidates, contest);
  return contest->best;
}

}  // namespace phiquant::cpu::PHIQUANT_ISA
