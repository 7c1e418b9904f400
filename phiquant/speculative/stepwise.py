"""What one sequence proposes next, token by token: a draft, a repeat, or nothing more."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from enum import Enum

from phiquant.speculative.pace import FORGET, GAIN, KEPT, PATIENCE, PLAIN, TRIALS, Outcome, Pauses
from phiquant.speculative.trust import Trust, is_repeat

_RECENT = 24  # rounds that say how fast it goes


class Source(Enum):
    DRAFT = "the draft"
    REPEAT = "the text so far"


class Stepwise:
    """Proposes tokens as long as they pay, by how often such tokens held and what passes take.

    One more token pays if what it may bring, its chance times that of all before it, is more than
    comes in its time otherwise. A repeated token takes only its part of the verification, but may
    hold less often; a draft would have to read what is repeated, so none follows a repeat. What
    brings more until the last place is preferred.

    Args:
        most: tokens that may be proposed at once.
        trust: in drafts, at first.
    """

    def __init__(self, most: int, trust: Trust | None = None) -> None:
        self.most = self.places = most
        self.trust = trust or Trust()
        self.verifying: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.drafting: deque[float] = deque(maxlen=KEPT)  # seconds of one draft
        self.recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # tokens, seconds
        self.drafted: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # of rounds with drafts
        self.tried, self.kept = 2.0, 1.5  # a guess of the acceptance that soon weighs nothing
        self.trials = PATIENCE  # rounds with drafts, whatever they bring
        self.pauses = Pauses()
        self.more = self.draft = 0.0  # tokens that come in the time of one more, and of a draft

    @property
    def acceptance(self) -> float:
        """The chance that a drafted token is accepted if those before it were."""
        return self.kept / self.tried

    def choose(self, most: int) -> int:
        """The number of tokens to propose in the next round, `most` at most."""
        if len(self.verifying[0]) < PLAIN:
            return 0
        rate = max(1 / self._seconds_plain(), _rate_of(self.recent))
        self.more, self.draft = rate * self._seconds_more(), rate * self._seconds_of_draft()
        self.places = min(self.most, most)
        return self.places

    def next(self, kinds: Sequence[int], repeat: int | None) -> Source | None:
        """Where to take one more token from, if at all.

        Args:
            kinds: of the tokens so far (:mod:`phiquant.speculative.trust`).
            repeat: the kind of what may be repeated next; None if that is nothing.
        """
        repeated = 0.0 if repeat is None else self._gain(kinds, self.trust.chance(repeat), 0.0)
        if not self.pauses.left and not (kinds and is_repeat(kinds[-1])):
            drafted = self._gain(kinds, self.acceptance, self.draft)
            # A round's first token is drafted until that is given up as a whole.
            if drafted > repeated or not (kinds or repeated):
                return Source.DRAFT
        return Source.REPEAT if repeated else None

    def _gain(self, kinds: Sequence[int], chance: float, cost: float) -> float:
        """Tokens to be had from here on, if each holds with this chance; 0 if that does not pay."""
        so_far = math.prod(map(self.trust.chance, kinds))
        ahead = range(1, self.places - len(kinds) + 1)
        return sum(max(so_far * chance**n - self.more - cost, 0.0) for n in ahead)

    def observe(self, outcome: Outcome) -> bool:
        """Take in one round; whether drafting was given up with it."""
        kinds, accepted = outcome.kinds, outcome.accepted[0]
        drafts = sum(not is_repeat(kind) for kind in kinds)
        self.verifying[len(kinds)].append(outcome.verifying)
        self.trust.observe(kinds, accepted)
        self.recent.append((1 + accepted, outcome.seconds))
        if not drafts:
            if self.pauses.left and self.pauses.count():
                self.trials = TRIALS
            return False
        held = min(accepted, drafts)
        self.drafting.append(outcome.drafting / drafts)
        self.kept = self.kept * FORGET + held
        self.tried = self.tried * FORGET + held + (held < drafts)
        self.drafted.append((1 + accepted, outcome.seconds))
        self.trials = max(self.trials - 1, 0)
        if self.trials or not self.verifying[0]:
            return False
        if _rate_of(self.drafted) > GAIN / self._seconds_plain():
            self.pauses.forget()
            return False
        self.pauses.begin()
        self.drafted.clear()  # the next trials speak for themselves
        return True

    def _seconds_plain(self) -> float:
        return statistics.median(self.verifying[0])

    def _seconds_of_draft(self) -> float:
        return statistics.median(self.drafting) if self.drafting else self._seconds_plain() / 2

    def _seconds_more(self) -> float:
        """What a verification takes longer with one token more."""
        medians = {k: statistics.median(times) for k, times in self.verifying.items() if times}
        if len(medians) == 1:
            return self._seconds_plain() / 10
        return max(statistics.linear_regression(list(medians), list(medians.values())).slope, 0.0)


def _rate_of(rounds: Sequence[tuple[float, float]]) -> float:
    return sum(tokens for tokens, _ in rounds) / max(sum(taken for _, taken in rounds), 1e-9)
