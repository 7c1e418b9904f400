"""torch.ops.phiquant.linear, compiled: tolerance, shapes, bad planes and bad words."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from phiquant import codec, ops
from phiquant.codec import Layout, Planes
from tests.support import DTYPES
from tests.test_kernels import BITS, BITS_IDS, off_by_one, random_planes, settings

pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")
phi = torch.ops.phiquant
# Of sum |x||w|: one rounding of the weights to the dtype of x, where that is a half type.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17)


def typical_planes(layout: Layout, rows: int) -> Planes:
    """Random codes under words of usual scales, so that fp16 holds every product."""
    planes = random_planes(layout, rows)
    words = planes.scale.int() & 0x83FF | 0x2400 + torch.randint(2, planes.scale.shape) * 0x400
    return planes._replace(scale=words.to(torch.int16))


def linear(x: Tensor, planes: Planes, bias: Tensor | None, layout: Layout) -> Tensor:
    return phi.linear(x, *planes, bias, layout.columns, *settings(layout))


def error(x: Tensor, planes: Planes, layout: Layout, actual: Tensor, bias: Any = None) -> float:
    """The largest deviation from the fp32 decode's exact product, as a part of sum |x||w|."""
    weight, wide = codec.decode(planes, layout).double(), x.double()
    shift, size = (None, None) if bias is None else (bias.double(), bias.double().abs())
    expected = functional.linear(wide, weight, shift)
    unit = functional.linear(wide.abs(), weight.abs(), size)
    of_result = TOLERANCE[x.dtype] * expected.abs()  # the result is rounded, too
    return (((actual.double() - expected).abs() - of_result) / unit).max().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grid", "index", "deviation"), BITS, ids=BITS_IDS)
def test_within_tolerance(grid: str, index: int, deviation: int, dtype: torch.dtype) -> None:
    for size, columns in ((32, 70), (64, 400), (128, 128)):
        layout = Layout(columns, index, deviation, size, grid, 0)
        planes = typical_planes(layout, 21)
        for rows in (1, 5, 18):
            x = torch.randn(rows, columns, dtype=dtype)
            actual = linear(x, planes, None, layout)
            assert actual.dtype == dtype
            assert actual.shape == (rows, 21)
            assert error(x, planes, layout, actual) <= TOLERANCE[dtype]


@pytest.mark.parametrize("deviation", [0, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_rows_with_and_without_bias(dtype: torch.dtype, deviation: int) -> None:
    layout = Layout(4200, 4, deviation)  # more than one stretch of scale words
    planes, bias = typical_planes(layout, 19), torch.randn(19, dtype=dtype)
    for rows, shift in product(ROWS, (None, bias)):
        x = torch.randn(rows, 4200, dtype=dtype) * 0.1
        assert error(x, planes, layout, linear(x, planes, shift, layout), shift) <= TOLERANCE[dtype]


@pytest.mark.parametrize("exponent", [-112, -47, -46, 90])
@pytest.mark.parametrize("rows", [1, 20])
def test_extreme_scales(exponent: int, rows: int) -> None:
    layout = Layout(128, exponent=exponent)
    planes, x = typical_planes(layout, 9), torch.randn(rows, 128)
    assert error(x, planes, layout, linear(x, planes, None, layout)) <= 1e-5


def test_denormal_weights_count_although_the_program_flushes_them() -> None:
    layout = Layout(128, exponent=-112)
    planes, x = random_planes(layout, 9), torch.full((2, 128), 2.0**60)
    expected = linear(x, planes, None, layout)
    torch.set_flush_denormal(True)
    flushed = linear(x, planes, None, layout)
    torch.set_flush_denormal(False)
    assert torch.equal(flushed, expected)


@pytest.mark.parametrize("shape", [(200,), (1, 200), (2, 3, 200), (0, 200), (3, 0, 200)], ids=str)
def test_shapes_of_x(shape: tuple[int, ...]) -> None:
    layout = Layout(200)
    planes, x = typical_planes(layout, 7), torch.randn(shape)
    expected = functional.linear(x, codec.decode(planes, layout))
    torch.testing.assert_close(linear(x, planes, None, layout), expected, rtol=1e-4, atol=1e-4)


def test_no_output_features() -> None:
    layout = Layout(200)
    planes = typical_planes(layout, 7)
    empty = Planes(*(None if plane is None else plane[:0] for plane in planes))
    assert linear(torch.randn(3, 200), empty, None, layout).shape == (3, 0)


@pytest.mark.parametrize("rows", [3, 30])
def test_views_are_read_and_nothing_else_is_touched(rows: int) -> None:
    layout = Layout(200, 4, 4)
    planes = typical_planes(layout, 7)
    wide = torch.randn(2 * rows, 412)
    x, before = wide[::2, 3:403:2], wide.clone()
    expected = linear(x.contiguous(), planes, None, layout)
    odd = Planes(*(None if plane is None else off_by_one(plane) for plane in planes))
    assert torch.equal(linear(x, odd, None, layout), expected)
    assert torch.equal(wide, before)
    for mine, plane in zip(odd, planes, strict=True):
        assert mine is None or torch.equal(mine, plane)


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_double_precision_is_the_fp32_decode(rows: int) -> None:
    layout = Layout(200)
    planes, x = typical_planes(layout, 7), torch.randn(rows, 200, dtype=torch.float64)
    weight = codec.decode(planes, layout).double()
    torch.testing.assert_close(linear(x, planes, None, layout), functional.linear(x, weight))


@pytest.mark.parametrize("word", [0x0000, 0x03F8, 0x8001, 0x7C00, 0x7E01, 0xFC00], ids=hex)
@pytest.mark.parametrize("deviation", [0, 4, 8])
def test_bad_words_raise_wherever_they_are(word: int, deviation: int) -> None:
    layout = Layout(64 * 70, 4, deviation)
    planes = typical_planes(layout, 21)
    for row, group in product((0, 20), (0, 17, 63, 64, 69)):
        scale = planes.scale.clone()
        scale[row, group] = word - 0x10000 if word > 0x7FFF else word
        for rows in (1, 2, 8, 20):
            with pytest.raises(ValueError, match="not a normal fp16 number with a bend below 8"):
                linear(torch.randn(rows, 64 * 70), planes._replace(scale=scale), None, layout)


def test_the_golden_grid_has_one_bend() -> None:
    layout = Layout(128, grid="golden")
    planes = typical_planes(layout, 3)
    scale = planes.scale | 1
    with pytest.raises(ValueError, match="bend below 1"):
        linear(torch.randn(2, 128), planes._replace(scale=scale), None, layout)
    with pytest.raises(ValueError, match="bend below 1"):
        phi.decode(*planes._replace(scale=scale), 128, *settings(layout), torch.float32)


def test_planes_of_three_dimensions_are_no_matrix() -> None:
    layout = Layout(128)
    planes = typical_planes(layout, 6)
    cube = (None if plane is None else plane.unflatten(0, (2, 3)) for plane in planes)
    with pytest.raises(ValueError, match="expected planes of two dimensions"):
        linear(torch.randn(2, 128), Planes(*cube), None, layout)
