"""Slices are compared with the whole before they are timed, and shares are of the whole's time."""

from __future__ import annotations

import pytest
import torch

from benchmarks import piercing
from benchmarks.piercing import NotTheSame, Slice
from phiquant import PhiTensor

SIZE = 576  # a short second block


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(SIZE, SIZE, generator=generator) * 0.02).bfloat16()


@pytest.fixture(scope="module")
def tiers(weight: torch.Tensor) -> dict[str, PhiTensor]:
    return piercing.tiers_of(weight)


def test_slices_hold_what_they_say(weight: torch.Tensor) -> None:
    for part in piercing.slices(SIZE):
        for place in piercing.places():
            assert part.pick(weight, place).numel() == part.count


def test_every_slice_of_every_tier_is_that_of_the_whole(
    weight: torch.Tensor, tiers: dict[str, PhiTensor]
) -> None:
    piercing.verify(tiers, weight, piercing.slices(SIZE))


def test_a_slice_that_is_not_is_found(weight: torch.Tensor, tiers: dict[str, PhiTensor]) -> None:
    def shifted(some: torch.Tensor, place: float) -> torch.Tensor:
        return some[1:2] if isinstance(some, PhiTensor) else some[:1]

    with pytest.raises(NotTheSame, match=r"a shifted row at 0.00 of the index tier"):
        piercing.verify(tiers, weight, [Slice("a shifted row", SIZE, shifted)])
    with pytest.raises(NotTheSame, match="not the original"):
        piercing.verify({"exact": tiers["exact"]}, weight * 2, [])


def test_places_reach_both_ends_and_are_distinct() -> None:
    found = piercing.places()
    assert (min(found), max(found), len(set(found))) == (0.0, 1.0, piercing.PLACES)


def test_measure_report_and_verdicts(tiers: dict[str, PhiTensor]) -> None:
    results = piercing.measure(tiers, piercing.slices(SIZE), 2)
    assert len(results) == 3 * len(piercing.slices(SIZE))
    assert all(row["us"] > 0 for row in results)
    text = piercing.report(results)
    assert text.count("\n") == 1 + len(piercing.slices(SIZE))
    assert "| 256 rows " in text
    assert len(piercing.verdicts(results)) == len(piercing.BARS)


def test_faster_is_a_ratio_to_the_whole_of_the_same_tier() -> None:
    results = [
        {"slice": name, "weights": count, "tier": tier, "us": us * factor}
        for name, count, us in (("1 row", 4, 2.0), ("256 rows", 8, 50.0), ("64 x 64", 2, 3.0),
                                ("64 columns", 2, 300.0),
                                ("the whole", 400, 600.0))
        for tier, factor in (("index", 1), ("deviation", 2), ("exact", 3))
    ]  # fmt: skip
    row = next(line for line in piercing.report(results).splitlines() if "1 row" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")][1:4] == ["100x", "2.00", "300.0x"]
    words = [str(check).split()[0] for check in piercing.verdicts(results)]
    assert words == ["PASS", "PASS", "PASS", "MISS"]
