"""The loop: propose some tokens, verify them in one pass, go on after those that hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from phiquant.speculative.choice import Choice, Verdict
from phiquant.speculative.pace import Outcome, Pace
from phiquant.speculative.passes import Passes, tell_once
from phiquant.speculative.repeats import Repeats
from phiquant.speculative.sequences import Sequences
from phiquant.speculative.statistics import Round, Statistics
from phiquant.speculative.stepwise import Source, Stepwise
from phiquant.speculative.trust import is_repeat, kind_of_draft, kind_of_repeat

Show = Callable[[list[list[int]]], None]


def decode(
    passes: Passes,
    sequences: Sequences,
    choice: Choice,
    pace: Pace | Stepwise,
    statistics: Statistics,
    show: Show,
) -> None:
    """Go on with `sequences` until all have ended; `show` gets what each round adds to them."""
    began = time.perf_counter()
    logits = passes.start(sequences.aligned(), sequences.lengths)
    show(sequences.take(choice.first(logits).tolist()))
    rounds = Rounds(passes, sequences, choice, pace)
    while not all(sequences.ended):
        most = pace.choose(sequences.left - 1)
        paused = time.perf_counter()
        passes.prepare(len(sequences.new), most)
        began += time.perf_counter() - paused  # compiling is no part of decoding
        done = rounds.run(most)
        taken = sequences.take(done.verdict.tokens)
        rounds.take(taken)
        statistics.rounds.append(done.counted(sum(map(len, taken)), passes))
        show(taken)
        if pace.observe(done.outcome):
            tell_once(
                "phiquant.generate: drafting does not pay here, so it goes on without drafts and "
                f"tries again later: {pace.acceptance:.0%} of drafted tokens would be accepted "
                f"with {len(taken)} sequence(s)"
            )
    statistics.seconds += time.perf_counter() - began
    statistics.new_tokens += sum(map(len, sequences.new))


class Done(NamedTuple):
    """What follows each sequence, and what it took."""

    verdict: Verdict
    outcome: Outcome

    def counted(self, tokens: int, passes: Passes) -> Round:
        """For the statistics; `tokens`: that were put out."""
        of = self.outcome
        repeats, going = sum(map(is_repeat, of.kinds)), len(of.accepted)
        drafts, accepted = of.drafted - repeats, sum(of.accepted)
        # With repeats there is one sequence, whose drafts come first.
        held = min(accepted, drafts * going)
        deep = passes.count(of.drafted + 1)
        ties = self.verdict.ties
        return Round(drafts * going, held, tokens, drafts, ties, deep, repeats, accepted - held)


class Rounds:
    """Rounds of some sequences: proposals one after the other, and their verification."""

    def __init__(
        self, passes: Passes, sequences: Sequences, choice: Choice, pace: Pace | Stepwise
    ) -> None:
        self.passes, self.sequences, self.choice, self.pace = passes, sequences, choice, pace
        self.repeats: Repeats | None = None
        if isinstance(pace, Stepwise):
            self.repeats = Repeats(sequences.prompts[0] + sequences.new[0])

    def take(self, taken: list[list[int]]) -> None:
        """What the last round added to each sequence."""
        if self.repeats is not None:
            self.repeats.extend(taken[0])

    def run(self, most: int) -> Done:
        """A round of `most` proposed tokens at most."""
        device, began = self.sequences.ids.device, time.perf_counter()
        starts = [length - 1 for length in self.sequences.lengths]
        first = torch.tensor(starts, device=device)[:, None]
        read, kinds = self._propose(first, min(starts), most)
        proposed = time.perf_counter()
        positions = first + torch.arange(read.shape[1], device=device)

        def decide(columns: list[int]) -> Tensor:
            at = torch.tensor(columns, device=device)[:, None]
            where = first + at
            nearest = min(s + c for s, c in zip(starts, columns, strict=True))
            return self.passes.verify(read.gather(1, at), where, nearest)[:, 0]

        logits = self.passes.verify(read, positions, min(starts))
        verdict = self.choice.settle(read, logits, decide)
        ended = self.sequences.ended
        accepted = [
            len(row) - 1 for row, over in zip(verdict.tokens, ended, strict=True) if not over
        ]
        times = proposed - began, time.perf_counter() - proposed
        return Done(verdict, Outcome(read.shape[1] - 1, accepted, *times, kinds))

    def _propose(self, first: Tensor, seen: int, most: int) -> tuple[Tensor, list[int]]:
        """The last token of each sequence and what is proposed after it; kinds, for one sequence.

        One wait for the device, at the end, but where tokens are chosen one by one.
        """
        block = [torch.tensor(self.sequences.last, device=first.device)[:, None]]
        if isinstance(self.pace, Stepwise):
            kinds = self._propose_stepwise(self.pace, block, first, seen, most)
            return torch.cat(block, 1), kinds
        for number in range(most):
            logits = self.passes.draft(block[-1], first + number, seen + number)[:, 0]
            block.append(self.choice.drafted(logits))
        return torch.cat(block, 1), []

    def _propose_stepwise(
        self, pace: Stepwise, block: list[Tensor], first: Tensor, seen: int, most: int
    ) -> list[int]:
        """The same for one sequence, as long as it pays; kinds of what is added to `block`."""
        assert self.repeats is not None
        ahead: list[int] = []
        kinds: list[int] = []
        for number in range(most):
            found = self.repeats.following(ahead)
            source = pace.next(kinds, None if found is None else kind_of_repeat(found[1]))
            if source is None:
                break
            if source is Source.REPEAT and found is not None:
                block.append(self.choice.given(torch.full_like(block[0], found[0])))
                kinds.append(kind_of_repeat(found[1]))
            else:
                logits = self.passes.draft(block[-1], first + number, seen + number)[:, 0]
                block.append(self.choice.drafted(logits))
                likely = logits.float().softmax(-1).gather(1, block[-1]).item()
                kinds.append(kind_of_draft(likely))
            ahead.append(int(block[-1]))
        return kinds
