"""The exact tier brings back every bit of a weight, whatever it is mixed with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phiquant import codec
from phiquant.codec import DTYPES, FITS, GROUP_SIZES
from phiquant.grid import GRIDS, INDEX_BITS
from tests.codec.support import bits, exact, floats, heavy_tailed, normal, specials

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FORMATS = [
    {},
    {"index_bits": 2, "deviation_bits": 2, "group_size": 128},
    {"index_bits": 6, "deviation_bits": 8, "group_size": 32},
    {"index_bits": 3, "deviation_bits": 2, "grid": "golden", "group_size": 32},
    {"index_bits": 5, "deviation_bits": 8, "grid": "golden", "group_size": 128},
]
ORDERS = ("ascending", "shuffled", "strided", "among specials")


def check_round_trip(weight: Tensor, **arguments: Any) -> None:
    """Every bit comes back, and only what no scale covers is an exception."""
    planes, layout = exact(weight, **arguments)
    layout.check(planes)
    again = codec.decode(planes, layout, weight.dtype)
    assert again.dtype == weight.dtype
    assert torch.equal(bits(again), bits(weight))
    expected = torch.zeros(weight.numel(), dtype=torch.bool)
    expected[planes.exceptions[:, 0]] = True
    covered = weight.flatten().float().abs() < 2.0**127
    assert not (expected & covered).any()
    assert expected[~weight.flatten().isfinite()].all()


def ordered(dtype: torch.dtype, order: str) -> Tensor:
    """Every 16-bit pattern, ``[64, 1024]`` or, with specials in each group, ``[1639, 64]``."""
    patterns = torch.arange(-(1 << 15), 1 << 15)
    if order == "shuffled":
        patterns = patterns[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))]
    elif order == "strided":  # every group reaches from zero to NaN, in both signs
        patterns = patterns.view(64, 1024).t().reshape(-1)
    weight = floats(patterns, dtype)
    if order != "among specials":
        return weight.view(64, 1024)
    special = specials(dtype)
    room = 64 - special.numel()
    rows = -(-weight.numel() // room)
    weight = torch.cat([weight, weight[: rows * room - weight.numel()]]).view(rows, room)
    return torch.cat([weight, special.expand(rows, -1)], dim=1)


@pytest.mark.parametrize(
    ("arguments", "order"),
    [({}, order) for order in ORDERS] + [(some, "among specials") for some in FORMATS[1:]],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_pattern(arguments: dict[str, Any], dtype: torch.dtype, order: str) -> None:
    check_round_trip(ordered(dtype, order), **arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_finite_patterns_in_the_range_of_weights_need_no_exception(dtype: torch.dtype) -> None:
    weight = ordered(dtype, "shuffled")
    weight = torch.where(weight.float().abs() < 2.0**127, weight, 0)
    assert exact(weight)[0].exceptions.shape == (0, 2)


def random_patterns(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return floats(torch.randint(1 << 32, (rows, 1000), generator=generator), torch.float32)


@pytest.mark.parametrize("arguments", FORMATS, ids=str)
def test_random_fp32_patterns(arguments: dict[str, Any]) -> None:
    check_round_trip(random_patterns(25, seed=0), **arguments)


def test_random_fp32_patterns_among_specials() -> None:
    weight = random_patterns(25, seed=1)
    for start in range(0, 1000, 64):
        weight[:, start : start + 24] = specials(torch.float32)[: 1000 - start]
    check_round_trip(weight)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_million_random_fp32_patterns(seed: int) -> None:
    """Ten million in all."""
    check_round_trip(random_patterns(1000, seed=100 + seed), grid=GRIDS[seed % 4 > 0])


@EVERY_DTYPE
@pytest.mark.parametrize("columns", [1, 63, 64, 511, 512, 513, 1100])
def test_rows_of_any_length(dtype: torch.dtype, columns: int) -> None:
    check_round_trip(heavy_tailed(3, columns).to(dtype))


@EVERY_DTYPE
def test_more_blocks_than_a_start_reaches(dtype: torch.dtype) -> None:
    weight = heavy_tailed(2, 40 * 512 + 9).to(dtype)
    planes, layout = exact(weight, grid="golden")
    assert planes.starts.shape == (3,)
    assert torch.equal(bits(codec.decode(planes, layout, dtype)), bits(weight))


@EVERY_DTYPE
@pytest.mark.parametrize("shape", [(70,), (2, 3, 70), (0, 70), (2, 0, 3)])
def test_weights_of_any_rank(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check_round_trip(normal(*shape, dtype=dtype))


@EVERY_DTYPE
@pytest.mark.parametrize("value", [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0])
def test_groups_of_one_value(dtype: torch.dtype, value: float) -> None:
    check_round_trip(torch.full((3, 70), value, dtype=dtype))


@EVERY_DTYPE
def test_one_special_among_normal_weights(dtype: torch.dtype) -> None:
    """Each in a row of its own, in the short last group."""
    special = specials(dtype)
    weight = normal(special.numel(), 70, dtype=dtype)
    weight[:, 66] = special
    check_round_trip(weight)


def test_strided_weights() -> None:
    weight = normal(70, 12, dtype=torch.bfloat16).t()
    planes, layout = exact(weight)
    assert torch.equal(codec.decode(planes, layout, torch.bfloat16), weight)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Any bits, often special ones, in up to three dimensions."""
    dtype = draw(st.sampled_from(DTYPES))
    leading = draw(st.lists(st.integers(1, 3), max_size=2))
    columns = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 128, 513])))
    width = 32 if dtype == torch.float32 else 16
    some = draw(st.lists(st.integers(0, 2**width - 1), min_size=1, max_size=24))
    values = torch.cat([floats(torch.tensor(some), dtype), specials(dtype)])
    if draw(st.booleans()):
        values = values[: len(some)]
    shape = (*leading, columns)
    seed = draw(st.integers(0, 1000))
    picked = torch.randint(len(values), shape, generator=torch.Generator().manual_seed(seed))
    return values[picked]


@given(
    weights(),
    st.sampled_from(FITS),
    st.fixed_dictionaries(
        {
            "index_bits": st.sampled_from(INDEX_BITS),
            "deviation_bits": st.sampled_from([2, 4, 8]),
            "group_size": st.sampled_from(GROUP_SIZES),
            "grid": st.sampled_from(GRIDS),
        }
    ),
)
@settings(max_examples=100)
def test_any_weight_in_any_format(weight: Tensor, fit: str, arguments: dict[str, Any]) -> None:
    check_round_trip(weight, fit=fit, **arguments)
