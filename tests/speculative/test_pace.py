"""How much is drafted follows from acceptance and times; drafting that loses is given up."""

from __future__ import annotations

import random

from phiquant.speculative.pace import Outcome, Pace

CHOICES = (1, 2, 3, 4, 5, 6, 7)


def simulate(
    pace: Pace, rounds: int, chance: float, draft: float, verify: float, per_row: float = 0.0
) -> list[int]:
    """What is chosen in each round where passes take these seconds."""
    luck, chosen = random.Random(0), []
    for _ in range(rounds):
        k = pace.choose(100)
        accepted = 0
        while accepted < k and luck.random() < chance:
            accepted += 1
        pace.observe(Outcome(k, [accepted], k * draft, verify + k * per_row))
        chosen.append(k)
    return chosen


def test_good_drafts_are_long_and_bad_ones_short() -> None:
    long = simulate(Pace(CHOICES), 200, chance=0.95, draft=0.1, verify=1.0)
    short = simulate(Pace(CHOICES), 200, chance=0.5, draft=0.1, verify=1.0)
    assert sum(long[-50:]) / 50 >= 6
    assert 1 <= sum(short[-50:]) / 50 <= 3


def test_it_finds_the_number_that_pays_most() -> None:
    """0.8 accepted, a draft a quarter of a verification: by the formula two tokens pay most."""

    def gain(k: int) -> float:
        return sum(0.8**i for i in range(k + 1)) / (1 + k * 0.25)

    best = max(CHOICES, key=gain)
    found = simulate(Pace(CHOICES), 400, chance=0.8, draft=0.25, verify=1.0)[-100:]
    assert gain(max(set(found), key=found.count)) > 0.98 * gain(best)


def test_drafting_that_loses_is_given_up_and_tried_again_less_and_less() -> None:
    pace = Pace(CHOICES)
    chosen = simulate(pace, 1000, chance=0.2, draft=0.5, verify=1.0, per_row=0.3)
    assert pace.choose(100) == 0
    assert sum(k > 0 for k in chosen) < 40
    assert any(k > 0 for k in chosen[100:])


def test_it_comes_back_to_drafts_when_they_pay_again() -> None:
    pace = Pace(CHOICES)
    simulate(pace, 100, chance=0.05, draft=0.3, verify=1.0)
    later = simulate(pace, 600, chance=0.95, draft=0.1, verify=1.0)
    assert sum(k > 0 for k in later[-50:]) > 40


def test_large_batches_whose_verification_grows_are_given_up() -> None:
    pace = Pace(CHOICES)
    gave_up = False
    for _ in range(40):
        k = pace.choose(100)
        gave_up |= pace.observe(Outcome(k, [k * 3 // 4] * 16, 0.5 * k, k + 1.0))
    assert gave_up


def test_a_number_that_is_fixed_stays() -> None:
    pace = Pace(CHOICES, fixed=3)
    assert simulate(pace, 50, chance=0.0, draft=9.0, verify=1.0) == [3] * 50
    assert pace.choose(2) == 2


def test_no_more_is_drafted_than_there_is_room_for() -> None:
    pace = Pace(CHOICES)
    simulate(pace, 50, chance=0.95, draft=0.1, verify=1.0)
    assert [pace.choose(most) for most in (0, 1, 2)] == [0, 1, 2]
    assert Pace((4,)).choose(3) == 0
