"""What is repeated is what followed the longest known tokens when they last stood there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiquant.speculative.repeats import LENGTHS, Repeats

TEXTS = st.lists(st.integers(0, 3), max_size=40)


def slowly(text: list[int], ahead: list[int]) -> tuple[int, int] | None:
    """The same by looking at every place of the text."""
    whole = text + ahead
    for length in LENGTHS:
        last = whole[-length:]
        for place in range(len(text) - length - 1, -1, -1):
            if len(last) == length and text[place : place + length] == last:
                return text[place + length], length
    return None


@given(text=TEXTS, ahead=st.lists(st.integers(0, 3), max_size=6))
def test_it_finds_what_a_search_through_the_text_finds(text: list[int], ahead: list[int]) -> None:
    assert Repeats(text).following(ahead) == slowly(text, ahead)


@given(text=TEXTS, more=TEXTS)
def test_a_text_may_come_in_parts(text: list[int], more: list[int]) -> None:
    parts = Repeats(text)
    parts.extend(more)
    assert parts.following() == Repeats(text + more).following()


@pytest.mark.parametrize("text", [[], [1], [1, 2], [1, 2, 3, 4]], ids=str)
def test_nothing_follows_what_was_never_there(text: list[int]) -> None:
    assert Repeats(text).following() is None


def test_a_circle_is_gone_round_for_as_long_as_is_asked() -> None:
    text, ahead = Repeats([7, 1, 2, 3, 1, 2, 3, 1, 2]), []
    for _ in range(7):
        found = text.following(ahead)
        assert found is not None
        ahead.append(found[0])
    assert ahead == [3, 1, 2, 3, 1, 2, 3]
