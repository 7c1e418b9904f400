"""How many tokens to draft: as many as bring the most tokens a second, by what was seen so far."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Sequence

from phiquant.speculative.trust import Trust

_KEPT = 9  # times of rounds, of which the median counts
_FORGET = 0.97  # what a round leaves of the weight of those before it
_FIRST_GUESS = 4  # drafted tokens of the first round
_PLAIN = 2  # rounds without drafts that come first, which drafting is held against
_PATIENCE = 6  # rounds with drafts before drafting is given up
_TRIALS = 3  # rounds with drafts after a pause
_GAIN = 1.02  # how many times as fast drafting has to be
_PAUSE = 32, 512  # rounds without drafts until drafts are tried again, at first and at most
_RECENT = 24  # rounds with drafts that say how fast they are


class Pace:
    """Chooses the number of drafted tokens of each round.

    A round of k drafted tokens puts out ``1 + a + ... + a^k`` tokens where each is accepted with
    probability a; it takes the median of the rounds of k tokens, or what a line through the others
    says. With several sequences a is that of all of them.

    Args:
        choices: numbers that may be chosen; 0 is plain decoding.
        fixed: one number that is always chosen.
        trust: ends drafts early, where what comes is not likely to hold; the numbers chosen are
            then the most. Its rounds are counted by what they put out.
    """

    def __init__(
        self, choices: tuple[int, ...], fixed: int | None = None, trust: Trust | None = None
    ) -> None:
        self.choices, self.fixed = tuple(sorted({0, *choices})), fixed
        self.trust = trust
        self.recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # tokens, seconds
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
        if self.trust is not None:
            return possible[-1]
        if self.trials:
            possible = possible[1:]
        if len(self.times) == 1:
            return min(possible, key=lambda k: abs(k - _FIRST_GUESS))
        return max(possible, key=self.rate)

    def goes_on(self, sure: Sequence[float]) -> bool:
        """Whether one more token should be drafted: with trust, for one sequence.

        It pays if the tokens that it may bring, one with the chance that all before it hold and it
        does, are more than come in its time otherwise.

        Args:
            sure: the draft's probabilities of the tokens so far.
        """
        if self.trust is None or not sure:
            return True
        chance = math.prod(map(self.trust.chance, sure)) * self.acceptance
        return chance >= self._rate_now() * self._seconds_each()

    def _rate_now(self) -> float:
        """Tokens a second, with drafts or without."""
        plain = 1 / self.seconds(0)
        return max(plain, self._rate_of_drafts()) if self.recent else plain

    def _seconds_each(self) -> float:
        """What drafting and verifying one token more takes."""
        medians = {k: statistics.median(times) for k, times in self.times.items() if times}
        drafted = [k for k in medians if k] if len(medians) > 3 else list(medians)
        if len(drafted) == 1:
            return medians[drafted[0]] / 2
        return max(statistics.linear_regression(drafted, [medians[k] for k in drafted]).slope, 0.0)

    def observe(
        self, drafted: int, accepted: list[int], seconds: float, sure: Sequence[float] = ()
    ) -> bool:
        """Take in one round; whether drafting was given up with it.

        Args:
            drafted: tokens that were drafted in each sequence.
            accepted: how many of them were accepted, of each.
            seconds: that the round took.
            sure: with trust, the draft's probabilities of its tokens.
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
        if self.trust is not None:
            self.trust.observe(sure, accepted[0])
            self.recent.append((1 + accepted[0], seconds))
        if self.fixed is not None or self.trials or not self.times[0]:
            return False
        if self._rate_of_drafts() > self.rate(0) * _GAIN:
            self.longest_pause = _PAUSE[0]
            return False
        self.pause, self.longest_pause = self.longest_pause, min(2 * self.longest_pause, _PAUSE[1])
        self.recent.clear()  # the next trials speak for themselves
        return True

    def _rate_of_drafts(self) -> float:
        """Tokens a second with the number of drafts that pays most, or with trust."""
        if self.trust is None:
            return max(self.rate(k) for k in self.choices if k)
        return sum(tokens for tokens, _ in self.recent) / sum(taken for _, taken in self.recent)

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
