"""The loop: draft some tokens, verify them in one pass, go on after those that hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from phiquant.speculative.choice import Choice
from phiquant.speculative.pace import Pace
from phiquant.speculative.passes import Passes, tell_once
from phiquant.speculative.sequences import Sequences
from phiquant.speculative.statistics import Round, Statistics

Show = Callable[[list[list[int]]], None]


def decode(
    passes: Passes,
    sequences: Sequences,
    choice: Choice,
    pace: Pace,
    statistics: Statistics,
    show: Show,
) -> None:
    """Go on with `sequences` until all have ended; `show` gets what each round adds to them."""
    began = time.perf_counter()
    logits = passes.start(sequences.aligned(), sequences.lengths)
    show(sequences.take(choice.first(logits).tolist()))
    while not all(sequences.ended):
        drafted = pace.choose(sequences.left - 1)
        paused = time.perf_counter()
        passes.prepare(len(sequences.new), drafted)
        start = time.perf_counter()
        began += start - paused  # compiling is no part of decoding
        found, drafted, ties, sure = _round(passes, sequences, choice, pace, drafted)
        going = [row for row, ended in enumerate(sequences.ended) if not ended]
        accepted = [len(found[row]) - 1 for row in going]
        taken = sequences.take(found)
        put_out, deep = sum(map(len, taken)), passes.count(drafted + 1)
        statistics.rounds.append(
            Round(drafted * len(going), sum(accepted), put_out, drafted, ties, deep)
        )
        show(taken)
        if pace.observe(drafted, accepted, time.perf_counter() - start, sure):
            tell_once(
                "phiquant.generate: drafting does not pay here, so it goes on without drafts and "
                f"tries again later: {pace.acceptance:.0%} of drafted tokens would be accepted "
                f"with {len(found)} sequence(s)"
            )
    statistics.seconds += time.perf_counter() - began
    statistics.new_tokens += sum(map(len, sequences.new))


class Found(NamedTuple):
    """What follows each sequence, how much was drafted, near ties, the draft's probabilities."""

    tokens: list[list[int]]
    drafted: int
    ties: int
    sure: list[float]


def _round(passes: Passes, sequences: Sequences, choice: Choice, pace: Pace, drafted: int) -> Found:
    """Of `drafted` tokens at most; one wait for the device but for drafts that may end early."""
    device = sequences.ids.device
    starts = [length - 1 for length in sequences.lengths]
    seen = min(starts)
    first = torch.tensor(starts, device=device)[:, None]
    block = [torch.tensor(sequences.last, device=device)[:, None]]
    sure: list[float] = []
    for number in range(drafted):
        if not pace.goes_on(sure):
            break
        logits = passes.draft(block[-1], first + number, seen + number)[:, 0]
        block.append(choice.drafted(logits))
        if pace.trust is not None:
            sure.append(logits.float().softmax(-1).gather(1, block[-1]).item())
    read = torch.cat(block, 1)
    positions = first + torch.arange(read.shape[1], device=device)

    def decide(columns: list[int]) -> Tensor:
        at = torch.tensor(columns, device=device)[:, None]
        where = first + at
        nearest = min(s + c for s, c in zip(starts, columns, strict=True))
        return passes.verify(read.gather(1, at), where, nearest)[:, 0]

    verdict = choice.settle(read, passes.verify(read, positions, seen), decide)
    return Found(verdict.tokens, read.shape[1] - 1, verdict.ties, sure)
