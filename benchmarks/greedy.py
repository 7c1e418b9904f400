"""The loop that is timed: one token after the other, each the likeliest after those before it."""

from __future__ import annotations

import time
from typing import Any, Protocol

PROMPT = (1, 504, 260, 7192, 282, 253, 3012, 28)  # any tokens do
CHECKED = (253, 1123, 30)  # and go on after the prompt, one at a time, in the check


class Sequence(Protocol):
    """A model with the cache of one sequence."""

    def restart(self) -> None:
        """Forget the sequence."""

    def step(self, tokens: list[int]) -> Any:
        """Go on with these tokens; the logits [vocabulary] after the last, torch's or numpy's."""


def logits(sequence: Sequence) -> list[Any]:
    """After the prompt and after each of the checked tokens."""
    sequence.restart()
    return [sequence.step(list(PROMPT)), *(sequence.step([token]) for token in CHECKED)]


def turn(sequence: Sequence, tokens: int, seconds: float) -> list[float]:
    """Seconds of each token after the prompt; at least two, even if time has run out."""
    sequence.restart()
    following = int(sequence.step(list(PROMPT)).argmax())
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < tokens and sum(taken) < seconds):
        start = time.perf_counter()
        following = int(sequence.step([following]).argmax())
        taken.append(time.perf_counter() - start)
    return taken
