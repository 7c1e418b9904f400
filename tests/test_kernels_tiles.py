"""Products on the matrix unit, where there is one: every width, group size and rounding.

Without one the same calls take other kernels, which have to be as right.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from phiquant import codec, ops
from phiquant.codec import Layout, Planes
from phiquant.ops import round_to_int8
from tests.test_kernels import settings
from tests.test_kernels_linear import TOLERANCE, error, linear, typical_planes

pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")
phi = torch.ops.phiquant
COLUMNS = (1, 31, 64, 65, 250, 256, 300, 1100)
SHAPES = ((1, 1), (15, 2), (16, 3), (17, 5), (40, 9), (33, 16), (50, 17), (20, 140))


def has_int8() -> bool:
    return json.loads(phi.isa())["integers"] is not None


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("deviation_bits", [0, 2, 4, 8])
def test_any_columns_and_rows(deviation_bits: int, group_size: int) -> None:
    for columns in COLUMNS:
        layout = Layout(columns, 4, deviation_bits, group_size)
        for rows, m in SHAPES:
            planes = typical_planes(layout, rows)
            x, bias = torch.randn(m, columns).bfloat16(), torch.randn(rows).bfloat16()
            actual = linear(x, planes, bias, layout)
            assert error(x, planes, layout, actual, bias) <= TOLERANCE[x.dtype], (columns, rows, m)


@pytest.mark.parametrize("m", [1, 3, 16, 33])
def test_what_is_not_finite_stays_in_its_row(m: int) -> None:
    layout = Layout(200)
    planes, x = typical_planes(layout, 20), torch.randn(m, 200).bfloat16()
    x[0, 7], x[-1, 199] = torch.inf, torch.nan
    actual = linear(x, planes, None, layout)
    assert not actual[0].isfinite().any()
    assert actual[-1].isnan().all()
    assert actual[1:-1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("deviation_bits", [2, 4, 8])
def test_few_and_many_rows_of_exact_weights(deviation_bits: int, dtype: torch.dtype) -> None:
    for columns in (1, 70, 576):
        layout = Layout(columns, 4, deviation_bits, exponent=-10, stored_dtype=torch.bfloat16)
        weight = (torch.randn(50, columns) * 0.02).bfloat16()
        planes = exact_planes(weight, layout)
        for m in (1, 2, 5, 16, 17, 40):
            x = torch.randn(m, columns, dtype=dtype)
            expected = functional.linear(x.double(), weight.double())
            unit = functional.linear(x.double().abs(), weight.double().abs())
            off = (linear(x, planes, None, layout).double() - expected).abs()
            # fp16 rounds every weight once, and small results at its smallest step.
            step = 2.0**-23 if dtype == torch.float16 else 0.0
            assert (off <= TOLERANCE[dtype] * (unit + expected.abs()) + step).all(), (columns, m)


def exact_planes(weight: Tensor, layout: Layout) -> Planes:
    lossy = phi.encode(weight, None, *settings(layout), "joint")
    held = [plane if plane.shape[-1] else None for plane in lossy]
    rest = phi.encode_remainder(weight, *held, *settings(layout))
    return Planes(*held, *rest[:3])


def test_an_infinity_among_exact_weights_reaches_its_products() -> None:
    layout = Layout(70, 4, 4, exponent=-10, stored_dtype=torch.bfloat16)
    weight = (torch.randn(40, 70) * 0.02).bfloat16()
    weight[33, 69], weight[0, 0] = torch.inf, -torch.inf
    lossy = phi.encode(weight, None, *settings(layout), "joint")
    held = [plane if plane.shape[-1] else None for plane in lossy]
    planes = Planes(*held, *phi.encode_remainder(weight, *held, *settings(layout)))
    for m in (1, 18):
        x = torch.ones(m, 70, dtype=torch.bfloat16)
        actual = linear(x, planes, None, layout)
        assert torch.equal(actual.isinf(), functional.linear(x, weight).isinf())
        assert (actual[:, 33] == torch.inf).all()
        assert (actual[:, 0] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_int8_activations_are_off_by_their_steps(group_size: int, dtype: torch.dtype) -> None:
    for columns in COLUMNS:
        layout = Layout(columns, 4, 0, group_size)
        for rows, m in SHAPES:
            planes, x = typical_planes(layout, rows), torch.randn(m, columns, dtype=dtype)
            actual = phi.linear_int8(x, *planes, None, columns, *settings(layout)).double()
            weight = codec.decode(planes, layout).double()
            expected = functional.linear(x.double(), weight)
            # Half a step of x and of the levels, and the roundings of bf16 on either side.
            of_x = x.abs().amax(-1, keepdim=True).double() / 254 + x.double().abs() / 256
            of_weight = largest_level(planes, layout) / 254
            limit = functional.linear(of_x, weight.abs())
            limit += functional.linear(x.double().abs(), of_weight) + of_x @ of_weight.T
            off = (actual - expected).abs() - expected.abs() / 256
            assert (off <= limit + 1e-30).all(), (columns, rows, m)


@pytest.mark.parametrize("special", [1.0, torch.finfo(torch.float32).max, torch.inf, torch.nan])
@pytest.mark.parametrize("m", [1, 3])
def test_int8_of_fp32_rows_is_that_of_their_bf16(m: int, special: float) -> None:
    """They are rounded as torch rounds: ties, denormals, and what overflows bf16."""
    if not has_int8():
        pytest.skip("this instruction set has no dot products of integers")
    layout = Layout(1000, 4, 0)
    planes = typical_planes(layout, 50)
    x = torch.randn(m, 1000) * torch.logspace(-44, 0, 1000)
    x[0, -3:] = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, special])
    args = (*planes, None, 1000, *settings(layout))
    expected = phi.linear_int8(x.bfloat16(), *args).float()
    torch.testing.assert_close(phi.linear_int8(x, *args), expected, rtol=0, atol=0, equal_nan=True)


def largest_level(planes: Planes, layout: Layout) -> Tensor:
    """What every weight's group can hold at most, fp64 [rows, columns]."""
    words = planes.scale.int()
    bits = ((words & 0x7FF8) << 13) + (112 << 23)
    scales = bits.to(torch.int32).view(torch.float32).double()
    return scales.repeat_interleave(layout.group_size, -1)[:, : layout.columns]


def test_int8_is_used_where_there_is_a_kernel_for_it() -> None:
    layout = Layout(512, 4, 0)
    planes, x = typical_planes(layout, 64), torch.randn(4, 512).bfloat16()
    plain = linear(x, planes, None, layout)
    rounded = phi.linear_int8(x, *planes, None, 512, *settings(layout))
    assert torch.equal(plain, rounded) != has_int8()


def test_rows_of_zeros_and_of_what_is_not_finite_in_int8() -> None:
    layout = Layout(128, 4, 0)
    planes, x = typical_planes(layout, 20), torch.zeros(4, 128, dtype=torch.bfloat16)
    x[1, 3], x[2] = torch.nan, 1e-38
    actual = phi.linear_int8(x, *planes, None, 128, *settings(layout))
    assert torch.equal(actual[0], torch.zeros_like(actual[0]))
    assert actual[1].isnan().all()
    assert actual[2:].isfinite().all()


def test_rounding_to_int8_has_127_steps() -> None:
    x = torch.randn(5, 333)
    steps = round_to_int8(x) / (x.abs().amax(-1, keepdim=True) / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert ((x - round_to_int8(x)).abs() <= x.abs().amax(-1, keepdim=True) / 253.9).all()


def test_bad_words_raise_on_the_matrix_unit() -> None:
    layout = Layout(1100, 4, 4)
    for row, group in ((0, 0), (39, 17), (20, 16)):
        planes = typical_planes(layout, 40)
        planes.scale[row, group] = 0
        with pytest.raises(ValueError, match="scale"):
            linear(torch.randn(9, 1100).bfloat16(), planes, None, layout)


def test_torchs_own_use_of_the_matrix_unit_goes_on() -> None:
    """Tiles are set up by whoever uses them: neither finds the other's."""
    layout = Layout(512)
    planes, weight = typical_planes(layout, 256), torch.randn(256, 512).bfloat16()
    x = torch.randn(64, 512).bfloat16()
    ours, theirs = linear(x, planes, None, layout), functional.linear(x, weight)
    for m in (64, 3, 64, 1, 17):
        assert torch.allclose(linear(x[:m], planes, None, layout), ours[:m], rtol=0.02, atol=0.1)
        again = functional.linear(x, weight)
        assert torch.equal(again, theirs)
    assert torch.equal(linear(x, planes, None, layout), ours)
