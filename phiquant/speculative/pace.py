"""How many tokens to draft: as many as bring the most tokens a second, by what was seen so far."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

KEPT = 9  # times of rounds, of which the median counts
PLAIN = 2  # rounds without drafts that come first, which drafting is held against
PATIENCE = 6  # rounds with drafts before drafting is given up
TRIALS = 3  # rounds with drafts after a pause
GAIN = 1.02  # how many times as fast drafting has to be
FORGET = 0.97  # what a round leaves of the weight of those before it
_FIRST_GUESS = 4  # drafted tokens of the first round
_PAUSE = 32, 512  # rounds without drafts until drafts are tried again, at first and at most


class Outcome(NamedTuple):
    """Of one round.

    drafted: tokens that were proposed in each sequence.
    accepted: how many of them were accepted, of each.
    drafting, verifying: seconds that this took.
    kinds: of one sequence's proposed tokens, where these are chosen one by one.
    """

    drafted: int
    accepted: list[int]
    drafting: float
    verifying: float
    kinds: Sequence[int] = ()

    @property
    def seconds(self) -> float:
        return self.drafting + self.verifying


class Pauses:
    """Rounds without drafts, each time twice as many."""

    def __init__(self) -> None:
        self.left, self.longest = 0, _PAUSE[0]

    def begin(self) -> None:
        self.left, self.longest = self.longest, min(2 * self.longest, _PAUSE[1])

    def count(self) -> bool:
        """One round less; whether that was the last."""
        self.left -= 1
        return self.left == 0

    def forget(self) -> None:
        """The next pause is a first one."""
        self.longest = _PAUSE[0]


class Pace:
    """Chooses the number of drafted tokens of each round.

    A round of k drafted tokens puts out ``1 + a + ... + a^k`` tokens where each is accepted with
    probability a; it takes the median of the rounds of k tokens, or what a line through the others
    says. With several sequences a is that of all of them.

    Args:
        choices: numbers that may be chosen; 0 is plain decoding.
        fixed: one number that is always chosen.
    """

    def __init__(self, choices: tuple[int, ...], fixed: int | None = None) -> None:
        self.choices, self.fixed = tuple(sorted({0, *choices})), fixed
        self.times: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.tried, self.kept = 2.0, 1.5  # a guess of a that soon weighs nothing
        self.trials = PATIENCE  # rounds with drafts, whatever they bring
        self.pauses = Pauses()

    @property
    def acceptance(self) -> float:
        """The chance that a drafted token is accepted if those before it were."""
        return min(self.kept / self.tried, 0.999)

    def choose(self, most: int) -> int:
        """The number of tokens to draft, `most` at most."""
        if self.fixed is not None:
            return min(self.fixed, most)
        possible = [k for k in self.choices if k <= most]
        if self.pauses.left or len(possible) == 1 or len(self.times[0]) < PLAIN:
            return 0
        if self.trials:
            possible = possible[1:]
        if len(self.times) == 1:
            return min(possible, key=lambda k: abs(k - _FIRST_GUESS))
        return max(possible, key=self.rate)

    def observe(self, outcome: Outcome) -> bool:
        """Take in one round; whether drafting was given up with it."""
        drafted, accepted = outcome.drafted, outcome.accepted
        self.times[drafted].append(outcome.seconds)
        if drafted == 0:
            if self.pauses.left:
                self.trials = TRIALS if self.pauses.count() else 0
            return False
        self.kept = self.kept * FORGET + sum(accepted)
        self.tried = self.tried * FORGET + sum(a + (a < drafted) for a in accepted)
        self.trials = max(self.trials - 1, 0)
        if self.fixed is not None or self.trials or not self.times[0]:
            return False
        if max(self.rate(k) for k in self.choices if k) > self.rate(0) * GAIN:
            self.pauses.forget()
            return False
        self.pauses.begin()
        return True

    def rate(self, drafted: int) -> float:
        """Tokens a second that a sequence may expect."""
        a = self.acceptance
        return sum(a**i for i in range(drafted + 1)) / self.seconds(drafted)

    def seconds(self, drafted: int) -> float:
        """Of a round."""
        medians = {k: statistics.median(times) for k, times in self.times.items() if times}
        if drafted in medians:
            return medians[drafted]
        if len(medians) == 1:
            return next(iter(medians.values())) * (1 + drafted / 2)
        slope, first = statistics.linear_regression(list(medians), list(medians.values()))
        return max(first + slope * drafted, min(medians.values()) * 0.5)
