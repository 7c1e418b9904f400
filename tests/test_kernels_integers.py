"""One row of bf16 as integers, where the CPU has dot products of them: what they may be off by.

Elsewhere the same calls take other kernels, which have to be as right.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from phiquant import codec, graph_ops, ops
from phiquant.codec import Layout, Planes
from tests.support import run_python
from tests.test_kernels import settings
from tests.test_kernels_linear import TOLERANCE, error, linear, typical_planes
from tests.test_kernels_tiles import largest_level

pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")
phi = torch.ops.phiquant
BITS = pytest.mark.parametrize("deviation_bits", [0, 4])


def reference(x: Tensor, planes: Planes, layout: Layout) -> Tensor:
    return functional.linear(x.double(), codec.decode(planes, layout).double())


def normwise(x: Tensor, planes: Planes, layout: Layout) -> Tensor:
    """2^-14 of what a group's largest x, and its largest level, can make of the other factor."""
    weight = codec.decode(planes, layout).double().abs()
    size, wide = layout.group_size, x.double().abs()
    groups = functional.pad(wide, (0, -layout.columns % size)).unflatten(-1, (-1, size))
    largest = groups.amax(-1).repeat_interleave(size, -1)[:, : layout.columns]
    limit = functional.linear(largest, weight)
    return (limit + functional.linear(wide, largest_level(planes, layout))) * 2**-14


@BITS
@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize("factor", [1.0, 1000.0], ids=["alike", "outliers"])
def test_errors_are_small_beside_a_groups_largest(
    factor: float, group_size: int, deviation_bits: int
) -> None:
    for columns in (64, 300, 1100, 5000):
        layout = Layout(columns, 4, deviation_bits, group_size)
        planes = typical_planes(layout, 50)
        x = torch.randn(1, columns)
        x[:, ::group_size] *= factor
        x = x.bfloat16()
        expected = reference(x, planes, layout)
        off = (linear(x, planes, None, layout).double() - expected).abs() - expected.abs() / 256
        assert (off <= normwise(x, planes, layout)).all(), columns


@BITS
@pytest.mark.parametrize("size", [2.0**-140, 2.0**-61, 2.0**100], ids=["denormal", "tiny", "huge"])
def test_x_of_any_size(size: float, deviation_bits: int) -> None:
    layout = Layout(200, 4, deviation_bits)
    planes, x = typical_planes(layout, 40), (torch.randn(1, 200) * size).bfloat16()
    actual = linear(x, planes, None, layout).double()
    off = (actual - reference(x, planes, layout)).abs() - actual.abs() / 256
    assert (off <= normwise(x, planes, layout) + 2.0**-133).all()


@BITS
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
def test_what_is_not_finite_is_told_apart(value: float, deviation_bits: int) -> None:
    layout = Layout(200, 4, deviation_bits)
    planes, x = typical_planes(layout, 40), torch.randn(1, 200).bfloat16()
    x[0, 77] = value
    actual, expected = linear(x, planes, None, layout), reference(x, planes, layout)
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.double()[expected.isinf()], expected[expected.isinf()])


def test_zeros_give_the_bias() -> None:
    layout = Layout(130, 4, 4)
    bias = torch.randn(21).bfloat16()
    planes, x = typical_planes(layout, 21), torch.zeros(1, 130, dtype=torch.bfloat16)
    assert torch.equal(linear(x, planes, bias, layout)[0], bias)


@pytest.mark.parametrize("deviation_bits", [0, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_row_is_the_same_in_any_range(dtype: torch.dtype, deviation_bits: int) -> None:
    """Threads divide the weight's rows, and some of a range are read side by side."""
    layout = Layout(1000, 4, deviation_bits)
    planes, x = typical_planes(layout, 403), torch.randn(1, 1000, dtype=dtype)
    whole = linear(x, planes, None, layout)
    for first, last in ((0, 1), (5, 8), (17, 403), (100, 205)):
        part = Planes(*(None if p is None else p[first:last].contiguous() for p in planes))
        assert torch.equal(linear(x, part, None, layout), whole[:, first:last]), (first, last)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
@pytest.mark.slow
def test_products_on_other_instruction_sets(isa: str) -> None:
    known = {entry["name"]: entry["missing"] for entry in json.loads(phi.isa())["sets"]}
    if known.get(isa, ["it"]):
        pytest.skip(f"this CPU or build has no {isa}")
    files = ["tests/test_kernels_integers.py", "tests/test_kernels_tiles.py"]
    run = run_python(
        f"import os\nos.environ['PHIQUANT_ISA'] = '{isa}'\n"
        f"import sys, pytest\nsys.exit(pytest.main(['-q', '-m', 'not slow', *{files}]))"
    )
    assert run.returncode == 0, run.stdout[-3000:]


def test_int8_agrees_with_int8_of_more_rows() -> None:
    """One row and many take different kernels, which round x and levels alike."""
    layout = Layout(900, 4, 0)
    planes, x = typical_planes(layout, 70), torch.randn(5, 900).bfloat16()
    many = phi.linear_int8(x, *planes, None, 900, *settings(layout))
    for i in range(5):
        one = phi.linear_int8(x[i : i + 1], *planes, None, 900, *settings(layout))
        assert error(x[i : i + 1], planes, layout, one) <= 8 * TOLERANCE[torch.bfloat16]
        torch.testing.assert_close(one[0], many[i], rtol=2**-7, atol=2**-7 * many[i].abs().max())


@pytest.mark.parametrize("largest", [1.0, 1e30], ids=["usual", "huge"])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("deviation_bits", [2, 4, 8])
def test_rounded_rows_that_meet_deviations_are_as_near_as_bf16(
    deviation_bits: int, m: int, largest: float
) -> None:
    """Rounded where that is faster, else taken as they are."""
    layout = Layout(900, 4, deviation_bits)
    planes, x = typical_planes(layout, 70), torch.randn(m, 900)
    x[0, 0] = largest
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if dtype == torch.float16 and largest > 1:
            continue
        given = x.to(dtype)
        found = phi.linear_int8(given, *planes, None, 900, *settings(layout))
        assert found.dtype == dtype
        wanted = reference(given, planes, layout)
        assert (found - wanted).abs().amax() <= 2**-7 * wanted.abs().amax()
        several = phi._linears(
            given, *([p, p] if p is not None else [] for p in planes[:-1]), [], 900, packed(layout)
        )
        assert all(torch.equal(one, found) for one in several)


def packed(layout: Layout) -> int:
    return graph_ops.pack(*settings(layout), True)
