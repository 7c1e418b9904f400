"""How many tokens to draft: as many as bring the most tokens a second, by what was seen so far."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque

_KEPT = 9  # times of rounds, of which the median counts
_FORGET = 0.97  # what a round leaves of the weight of those before it
_FIRST_GUESS = 4  # drafted tokens of the first round
_PLAIN = 2  # rounds without drafts that come first, which drafting is held against
_PATIENCE = 6  # rounds with drafts before drafting is given up
_TRIALS = 3  # rounds with drafts after a pause
_GAIN = 1.02  # how many times as fast drafting has to be
_PAUSE = 32, 512  # rounds without drafts until drafts are tried again, at first and at most


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
        self.times: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self.tried, self.kept = 2.0, 1.5  # a guess of a that soon weighs nothing
        self.trials = _PATIENCE  # rounds with drafts, whatever they bring
        self.pause = 0
        self.longest_pause = _PAUSE[0]

    @property
    def acceptance(self) -> float:
        """The chance that a drafted token is accepted if those before it were."""
        return min(self.kept / self.tried, 0.999)

    @property
    def gave_up(self) -> bool:
        """Whether drafting does not pay at the moment."""
        return self.pause > 0

    def choose(self, most: int) -> int:
        """The number of tokens to draft, `most` at most."""
        if self.fixed is not None:
            return min(self.fixed, most)
        possible = [k for k in self.choices if k <= most]
        if self.pause or len(possible) == 1 or len(self.times[0]) < _PLAIN:
            return 0
        if self.trials:
            possible = possible[1:]
        if len(self.times) == 1:
            return min(possible, key=lambda k: abs(k - _FIRST_GUESS))
        return max(possible, key=self.rate)

    def observe(self, drafted: int, accepted: list[int], seconds: float) -> bool:
        """Take in one round; whether drafting was given up with it.

        Args:
            drafted: tokens that were drafted in each sequence.
            accepted: how many of them were accepted, of each.
            seconds: that the round took.
        """
        self.times[drafted].append(seconds)
        if drafted == 0:
            if self.pause:
                self.pause -= 1
                self.trials = 0 if self.pause else _TRIALS
            return False
        self.kept = self.kept * _FORGET + sum(accepted)
        self.tried = self.tried * _FORGET + sum(a + (a < drafted) for a in accepted)
        self.trials = max(self.trials - 1, 0)
        if self.fixed is not None or self.trials or not self.times[0]:
            return False
        if max(self.rate(k) for k in self.choices if k) > self.rate(0) * _GAIN:
            self.longest_pause = _PAUSE[0]
            return False
        self.pause, self.longest_pause = self.longest_pause, min(2 * self.longest_pause, _PAUSE[1])
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
