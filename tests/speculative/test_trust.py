"""How far a token is trusted follows from what held of its kind."""

from __future__ import annotations

from phiquant.speculative.repeats import LENGTHS
from phiquant.speculative.trust import Trust, is_repeat, kind_of_draft, kind_of_repeat


def test_each_probability_and_length_has_a_kind() -> None:
    drafts = [kind_of_draft(p / 100) for p in range(101)]
    repeats = [kind_of_repeat(length) for length in LENGTHS]
    assert len(set(drafts)) == 10
    assert not set(drafts) & set(repeats)
    assert len(set(repeats)) == len(LENGTHS)
    assert all(map(is_repeat, repeats))
    assert not any(map(is_repeat, drafts))


def test_the_first_guess_grows_with_the_probability_and_the_length() -> None:
    drafts = [Trust().chance(kind_of_draft(p / 10)) for p in range(11)]
    repeats = [Trust().chance(kind_of_repeat(length)) for length in sorted(LENGTHS)]
    for chances in (drafts, repeats):
        assert chances == sorted(chances)
        assert 0.2 < chances[0] < chances[-1] < 1


def test_a_draft_may_be_trusted_from_the_first() -> None:
    chances = [Trust(0.9).chance(kind_of_draft(p / 10)) for p in range(11)]
    assert chances == sorted(chances)
    assert 0.9 < chances[0] < chances[-1] < 1


def test_what_held_counts_up_to_the_first_that_did_not() -> None:
    trust = Trust()
    sure, doubtful, other = map(kind_of_draft, (0.95, 0.35, 0.75))
    for _ in range(200):
        trust.observe([sure, doubtful, other], 1)  # the second is rejected, the third not looked at
    assert trust.chance(sure) > 0.97
    assert trust.chance(doubtful) < 0.03
    assert trust.chance(other) == Trust().chance(other)
