"""Encoding exact weights: the price of remainder bits, and weights that are not finite."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from phiquant import codec
from phiquant.codec import FITS, Layout, Planes
from phiquant.codec.encode import PRICES
from tests.codec.support import (
    encoded,
    exact,
    floats,
    group_errors,
    heavy_tailed,
    index_tier,
    layout_for,
    normal,
    same_planes,
    specials,
)
from tests.codec.test_encode import every_score

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
LOSSY_FITS = [fit for fit in FITS if fit != "exact"]


def decibels(weight: Tensor, decoded: Tensor) -> float:
    weight, decoded = weight.double(), decoded.double()
    return (10 * (weight.square().sum() / (weight - decoded).square().sum()).log10()).item()


def remainder_bits(weight: Tensor, planes: Planes, layout: Layout) -> float:
    exact_layout = replace(layout, stored_dtype=weight.dtype)
    with_remainder = codec.encode_remainder(weight, Planes(*planes[:4]), exact_layout)
    return 8 * with_remainder.remainder.numel() / weight.numel()


class TestPrice:
    @pytest.mark.parametrize("fit", PRICES)
    @pytest.mark.parametrize(
        ("grid", "index_bits", "deviation_bits", "columns"),
        [("phi", 4, 4, 32), ("phi", 2, 2, 32), ("phi", 5, 8, 20), ("golden", 4, 4, 7)],
    )
    @HALVES
    def test_no_candidate_is_better(
        self,
        dtype: torch.dtype,
        grid: str,
        index_bits: int,
        deviation_bits: int,
        columns: int,
        fit: str,
    ) -> None:
        """Against a slow search that counts the floats between edges in a list of all of them."""
        weight = torch.cat([normal(2, columns), heavy_tailed(2, columns)]).to(dtype)
        layout = layout_for(
            weight, grid=grid, index_bits=index_bits, deviation_bits=deviation_bits, group_size=32,
            stored_dtype=dtype,
        )  # fmt: skip
        planes = codec.encode(weight, layout, fit)
        importance = torch.ones(columns, dtype=torch.float64)
        for group, word in zip(weight, planes.scale.flatten().tolist(), strict=True):
            scores = {
                each: math.log2(score) + PRICES[fit] * counted_bits(group, each, layout)
                for each, score in every_score(group.float(), importance, layout, "joint").items()
            }
            assert scores[word & 0xFFFF] <= min(scores.values()) + 1e-5

    @pytest.mark.parametrize("fit", ["index", "deviation"])
    def test_there_is_none_where_one_tier_is_minimised(self, fit: str) -> None:
        weight = heavy_tailed(8, 200).bfloat16()
        lossy, _ = encoded(weight, fit)
        assert same_planes(lossy, Planes(*exact(weight, fit)[0][:4]))

    def test_it_is_higher_for_the_exact_fit(self) -> None:
        assert PRICES["exact"] > PRICES["joint"] > 0

    def test_padding_is_for_nothing(self) -> None:
        """Zeros are in wide sub-cells; those of the pad must not turn the choice."""
        weight = heavy_tailed(30, 65).bfloat16()
        short, layout = exact(weight, "exact")
        alone, _ = exact(weight[:, 64:].contiguous(), "exact", exponent=layout.exponent)
        assert torch.equal(short.scale[:, 1:], alone.scale)


def counted_bits(group: Tensor, word: int, layout: Layout) -> int:
    """The remainder bits of one group under a scale word."""
    every = every_value(group.dtype)
    scale, bend = codec.read_words(torch.tensor([word & 0x7FFF]).short(), layout)
    count = 1 << layout.index_bits + layout.deviation_bits
    steps = torch.arange(count + 1) / 2**layout.deviation_bits
    edges = layout.curve.value(steps - (layout.curve.half - 0.5), bend) * scale
    below = torch.searchsorted(every, edges.double())
    below[-1] = (every <= edges[-1]).sum()
    flipped = -values(group) if word & 0x8000 else values(group)
    codes = (torch.searchsorted(edges.double(), flipped, right=True) - 1).clamp(0, count - 1)
    return sum((int(n) - 1).bit_length() for n in below.diff()[codes].clamp(min=1))


@cache
def every_value(dtype: torch.dtype) -> Tensor:
    every = floats(torch.arange(1 << 16), dtype)
    return values(every[every.isfinite()]).sort()[0]


def values(weight: Tensor) -> Tensor:
    """fp64, with -0.0 below 0."""
    wide = weight.double()
    return torch.where((wide == 0) & wide.signbit(), -(2.0**-200), wide)


class TestOutcome:
    """Of normal and heavy-tailed weights; docs/design-notes.md has figures of real models.

    Heavy tails take the steep bend, which saves remainder bits and costs the lossy tiers.
    """

    @pytest.fixture(params=["normal", "heavy-tailed"])
    def weight(self, request: pytest.FixtureRequest) -> Tensor:
        if request.param == "normal":
            return (normal(64, 512) * 0.02).bfloat16()
        return heavy_tailed(64, 512).bfloat16()

    @pytest.fixture
    def dearest(self, request: pytest.FixtureRequest) -> float:
        """What a remainder's price may take from a lossy tier, in dB."""
        return 0.25 if "normal" in request.node.name else 1.2

    def test_the_joint_fit_gets_smaller_at_little_error(
        self, weight: Tensor, dearest: float
    ) -> None:
        lossy, layout = encoded(weight)
        planes, _ = exact(weight)
        assert remainder_bits(weight, planes, layout) < remainder_bits(weight, lossy, layout) - 0.05
        index, deviation = (
            decibels(weight, tier(lossy, layout)) - decibels(weight, tier(planes, layout))
            for tier in (index_tier, deepest_tier)
        )
        assert -0.05 < index < dearest
        assert -0.05 < deviation < dearest

    def test_the_exact_fit_is_the_smallest(self, weight: Tensor) -> None:
        layout = layout_for(weight)
        sizes = {fit: remainder_bits(weight, exact(weight, fit)[0], layout) for fit in FITS}
        assert sizes["exact"] < sizes["joint"] - 0.05
        assert sizes["joint"] < min(sizes["index"], sizes["deviation"]) - 0.05

    def test_the_exact_fit_keeps_usable_tiers(self, weight: Tensor) -> None:
        planes, layout = exact(weight, "exact")
        assert decibels(weight, index_tier(planes, layout)) > 18.5
        assert decibels(weight, deepest_tier(planes, layout)) > 41

    @pytest.mark.parametrize("fit", LOSSY_FITS)
    def test_lossy_tiers_of_a_fit_are_near_those_without_a_remainder(
        self, weight: Tensor, dearest: float, fit: str
    ) -> None:
        lossy, layout = encoded(weight, fit)
        planes, _ = exact(weight, fit)
        for tier in (index_tier, deepest_tier):
            error, other = (
                group_errors(weight, tier(p, layout), layout).sum() for p in (planes, lossy)
            )
            assert 10 * (error / other).log10() <= dearest


def deepest_tier(planes: Planes, layout: Layout) -> Tensor:
    return codec.decode(Planes(*planes[:4]), layout.without_remainder)


class TestNotFinite:
    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("dtype", codec.DTYPES, ids=str)
    def test_such_weights_are_as_zeros_to_the_others(self, dtype: torch.dtype, fit: str) -> None:
        weight = normal(4, 150, dtype=dtype)
        special = specials(dtype)
        special = special[~special.isfinite()]
        weight[1, 50 : 50 + special.numel()] = special
        weight[2, 149] = math.nan
        weight[3] = -math.inf
        planes, layout = exact(weight, fit)
        zeroed = torch.where(weight.isfinite(), weight, 0)
        assert same_planes(Planes(*planes[:4]), codec.encode(zeroed, layout, fit))
        assert torch.equal(planes.exceptions[:, 0], (~weight.isfinite()).flatten().nonzero()[:, 0])

    def test_only_weights_that_no_scale_covers_are_other_exceptions(self) -> None:
        largest = torch.finfo(torch.float32).max
        weight = normal(3, 64)
        weight[1, 3], weight[1, 7] = largest, -largest
        planes, _ = exact(weight)
        assert set(planes.exceptions[:, 0].tolist()) <= {64 + 3, 64 + 7}
        assert len(planes.exceptions) > 0


class TestRefusals:
    def test_the_exact_fit_without_a_remainder(self) -> None:
        with pytest.raises(ValueError, match=r"fit='exact' minimises the remainder.*exact=True"):
            codec.encode(normal(1, 64), Layout(64), "exact")

    @pytest.mark.parametrize("stored_dtype", [None, torch.bfloat16], ids=str)
    def test_unknown_fit(self, stored_dtype: torch.dtype | None) -> None:
        layout = Layout(64, stored_dtype=stored_dtype)
        with pytest.raises(ValueError, match=r"fit must be one of .*'exact'.*got 'best'"):
            codec.encode(normal(1, 64, dtype=torch.bfloat16), layout, "best")
