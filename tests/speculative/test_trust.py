"""How far a draft is trusted follows from what held; drafts end where going on does not pay."""

from __future__ import annotations

import random

import pytest

from phiquant.speculative.pace import Pace
from phiquant.speculative.trust import Trust


def test_the_first_guess_grows_with_the_probability() -> None:
    chances = [Trust().chance(p / 10) for p in range(11)]
    assert chances == sorted(chances)
    assert 0.3 < chances[0] < chances[-1] < 1


def test_what_held_counts_up_to_the_first_that_did_not() -> None:
    trust = Trust()
    for _ in range(200):
        trust.observe([0.95, 0.35, 0.75], 1)  # the second is rejected, the third not looked at
    assert trust.chance(0.95) > 0.97
    assert trust.chance(0.35) < 0.03
    assert trust.chance(0.75) == Trust().chance(0.75)


@pytest.mark.parametrize(("draft", "pays"), [(0.3, True), (2.0, False)], ids=["cheap", "dear"])
def test_drafts_end_at_doubts_and_are_given_up_where_they_lose(draft: float, pays: bool) -> None:
    """Half of the tokens are certain, of the others every fifth holds."""
    luck, pace = random.Random(0), Pace((1, 2, 3, 4, 5, 6, 7), trust=Trust())
    lengths, sure_ends = [], []
    for _ in range(600):
        most, sure, held = pace.choose(100), [], []
        while len(sure) < most and pace.goes_on(sure):
            sure.append(luck.choice([0.05, 0.99]))
            held.append(sure[-1] > 0.5 or luck.random() < 0.2)
        accepted = held.index(False) if False in held else len(held)
        pace.observe(len(sure), [accepted], 1 + len(sure) * draft, sure)
        lengths.append(len(sure))
        if sure:
            sure_ends.append(all(p > 0.5 for p in sure[:-1]))
    if pays:
        assert sum(map(bool, lengths[-200:])) > 150
        assert sum(sure_ends[-100:]) > 95  # nothing is drafted after a doubt
        assert max(lengths[-200:]) >= 4
    else:
        assert sum(map(bool, lengths[-200:])) < 20
