"""Proposals end where going on does not pay, and come from where they cost least."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from phiquant.speculative.pace import Outcome
from phiquant.speculative.stepwise import Source, Stepwise
from phiquant.speculative.trust import is_repeat, kind_of_draft, kind_of_repeat

MORE = 0.05  # what a token more adds to a verification of 1 second


def simulate(
    pace: Stepwise,
    rounds: int,
    draft: float,
    drafted: Callable[[], tuple[int, bool]],
    repeated: Callable[[], tuple[int, bool] | None] = lambda: None,
) -> list[list[int]]:
    """Kinds of what each round proposes, where a draft takes these seconds.

    drafted, repeated: the kind of a token, and whether it holds.
    """
    proposed = []
    for _ in range(rounds):
        kinds: list[int] = []
        held: list[bool] = []
        for _ in range(pace.choose(100)):
            found = repeated()
            source = pace.next(kinds, None if found is None else found[0])
            if source is None:
                break
            token = found if source is Source.REPEAT else drafted()
            assert token is not None
            kinds.append(token[0])
            held.append(token[1])
        drafts = sum(not is_repeat(kind) for kind in kinds)
        accepted = held.index(False) if False in held else len(held)
        times = drafts * draft, 1 + MORE * len(kinds)
        pace.observe(Outcome(len(kinds), [accepted], *times, kinds))
        proposed.append(kinds)
    return proposed


def half_certain(luck: random.Random) -> tuple[int, bool]:
    """Half of the tokens are certain, of the others every fifth holds."""
    likely = luck.choice([0.05, 0.99])
    return kind_of_draft(likely), likely > 0.5 or luck.random() < 0.2


@pytest.mark.parametrize(("draft", "pays"), [(0.25, True), (2.0, False)], ids=["cheap", "dear"])
def test_drafts_end_at_doubts_and_are_given_up_where_they_lose(draft: float, pays: bool) -> None:
    luck = random.Random(0)
    proposed = simulate(Stepwise(7), 600, draft, lambda: half_certain(luck))
    late = [kinds for kinds in proposed[-200:] if kinds]
    if pays:
        sure = kind_of_draft(0.99)
        after_a_doubt = sum(any(kind != sure for kind in kinds[:-1]) for kinds in late)
        assert len(late) > 150
        assert after_a_doubt < 10
        assert max(map(len, late)) >= 4
    else:
        assert len(late) < 20


@pytest.mark.parametrize("draft", [0.1, 2.0], ids=["cheap drafts", "dear drafts"])
def test_repeats_that_hold_take_the_place_of_drafts(draft: float) -> None:
    kind = kind_of_repeat(5)
    proposed = simulate(
        Stepwise(7), 300, draft, lambda: (kind_of_draft(0.9), True), lambda: (kind, True)
    )
    assert all(kinds == [kind] * 7 for kinds in proposed[-50:])


def test_repeats_go_on_while_drafts_are_given_up() -> None:
    luck, kind = random.Random(0), kind_of_repeat(3)
    pace = Stepwise(7)
    proposed = simulate(
        pace,
        400,
        2.0,
        lambda: half_certain(luck),
        lambda: (kind, luck.random() < 0.7) if luck.random() < 0.5 else None,
    )
    late = proposed[-100:]
    assert sum(any(map(is_repeat, kinds)) for kinds in late) > 20
    assert sum(not all(map(is_repeat, kinds)) for kinds in late) < 20


def test_repeats_that_fail_are_no_longer_proposed() -> None:
    kind = kind_of_repeat(2)
    proposed = simulate(
        Stepwise(7), 300, 0.1, lambda: (kind_of_draft(0.9), True), lambda: (kind, False)
    )
    assert not any(kind in kinds for kinds in proposed[-100:])


def test_no_draft_follows_a_repeat() -> None:
    luck, kind = random.Random(0), kind_of_repeat(4)
    proposed = simulate(
        Stepwise(7),
        300,
        0.1,
        lambda: half_certain(luck),
        lambda: (kind, luck.random() < 0.8) if luck.random() < 0.4 else None,
    )
    sources = [list(map(is_repeat, kinds)) for kinds in proposed]
    assert any(len(set(each)) == 2 for each in sources)
    assert all(each == sorted(each) for each in sources)


def test_no_more_is_proposed_than_there_is_room_for() -> None:
    pace = Stepwise(7)
    assert pace.choose(100) == 0  # a few plain rounds come first
    simulate(pace, 10, 0.1, lambda: (kind_of_draft(0.9), True))
    assert [pace.choose(most) for most in (0, 3, 100)] == [0, 3, 7]
