"""Experts on a GPU: products of groups of rows, whose ends only the device knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from phiquant import PhiConfig, PhiTensor, codec, ops
from phiquant import expert_ops as expert_ops
from phiquant.codec import Layout, Planes
from tests.cuda.support import ON_A_GPU, misaligned, on_gpu, phi, same, settings, typical_planes

pytestmark = ON_A_GPU
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
EVERY_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
EXPERTS, OUT = 5, 24


def experts_of(layout: Layout, experts: int = EXPERTS, out: int = OUT) -> Planes:
    flat = typical_planes(layout, experts * out)
    return Planes(*(p if p is None else p.unflatten(0, (experts, out)) for p in flat))


def grouped(x: Tensor, planes: Planes, ends: Any, layout: Layout) -> Tensor:
    there = torch.as_tensor(ends, device="cuda")
    return phi.grouped_linear(x, *on_gpu(planes), there, layout.columns, *settings(layout))


def wanted(x: Tensor, of: Tensor, ends: list[int]) -> Tensor:
    """fp64; of: the experts' decoded weights."""
    result = torch.zeros(x.shape[0], of.shape[1], dtype=torch.float64, device="cuda")
    start = 0
    for weight, stop in zip(of.cuda().double(), ends, strict=True):
        result[start:stop] = x[start:stop].double() @ weight.t()
        start = stop
    return result


def is_close(actual: Tensor, x: Tensor, of: Tensor, ends: list[int]) -> bool:
    expected, unit = wanted(x, of, ends), wanted(x.abs(), of.abs(), ends)
    allowed = TOLERANCE[x.dtype] * (unit + expected.abs())
    return bool(((actual.double() - expected).abs() <= allowed).all())


# Nobody's rows first, in the middle, last and at the end; many rows of one expert.
ENDS = ([0, 3, 3, 4, 7], [2, 2, 2, 2, 2], [0, 0, 0, 0, 9], [1, 2, 3, 4, 5], [20, 21, 21, 30, 61])


@EVERY_DTYPE
@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("deviation", [0, 2, 4, 8])
def test_groups_of_rows(deviation: int, ends: list[int], dtype: torch.dtype) -> None:
    for columns in (64, 100, 328):
        layout = Layout(columns, 4, deviation, exponent=0)
        planes = experts_of(layout)
        x = torch.randn(ends[-1] + 2, columns, dtype=dtype, device="cuda")
        actual = grouped(x, planes, ends, layout)
        assert actual.dtype == dtype
        assert is_close(actual, x, codec.decode(planes, layout), ends)
        assert not actual[ends[-1] :].any()


@pytest.mark.parametrize(
    ("grid", "index", "deviation", "size"),
    [("phi", 4, 4, 32), ("phi", 5, 4, 128), ("phi", 2, 8, 64), ("golden", 4, 4, 64)],
)
def test_every_other_format(grid: str, index: int, deviation: int, size: int) -> None:
    layout = Layout(200, index, deviation, size, grid, 0)
    planes, x = experts_of(layout), torch.randn(7, 200, device="cuda")
    ends = [0, 3, 3, 4, 7]
    assert is_close(grouped(x, planes, ends, layout), x, codec.decode(planes, layout), ends)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("experts", [3, 40, 700])
@pytest.mark.parametrize("deviation", [0, 2, 4])
def test_some_of_many_experts_have_rows(deviation: int, experts: int, dtype: torch.dtype) -> None:
    """More experts than a block has threads, more tiles than one block takes, several turns."""
    layout = Layout(264, 4, deviation, exponent=0)
    planes = experts_of(layout, experts, out=152)
    counts = torch.randint(0, 4, (experts,)) * torch.randint(0, 2, (experts,))
    counts[experts // 2], counts[-1] = 37, 2
    ends = counts.cumsum(0).to(dtype)
    x = torch.randn(int(ends[-1]) + 3, 264, dtype=torch.bfloat16, device="cuda")
    actual = grouped(x, planes, ends, layout)
    assert is_close(actual, x, codec.decode(planes, layout), ends.tolist())
    assert not actual[int(ends[-1]) :].any()


def test_a_row_of_an_expert_has_the_same_bits_in_any_company() -> None:
    layout = Layout(512, exponent=0)
    planes = experts_of(layout, 4, out=600)
    x = torch.randn(9, 512, dtype=torch.bfloat16, device="cuda")
    alone = torch.cat([grouped(x[i : i + 1], planes, [0, 1, 1, 1], layout) for i in range(9)])
    assert same(grouped(x, planes, [0, 9, 9, 9], layout), alone)


@EVERY_DTYPE
def test_many_rows(dtype: torch.dtype) -> None:
    """Where torch has a product of groups, of all experts decoded."""
    layout = Layout(256, exponent=0)
    planes, ends = experts_of(layout), [0, 200, 230, 480, 590]
    x = torch.randn(600, 256, dtype=dtype, device="cuda")
    actual = grouped(x, planes, ends, layout)
    assert is_close(actual, x, codec.decode(planes, layout), ends)
    assert not actual[590:].any()


@pytest.mark.parametrize("tokens", [3, 40])
def test_exact_experts(tokens: int) -> None:
    of = torch.randn(EXPERTS, OUT, 128).bfloat16()
    weight = PhiTensor.from_hp(of, PhiConfig(exact=True)).cuda()
    x, ends = torch.randn(tokens, 128).bfloat16().cuda(), [0, 1, 2, 2, tokens]
    there = torch.tensor(ends, device="cuda")
    actual = phi.grouped_linear(x, *weight.planes, there, *weight.op_arguments)
    assert is_close(actual, x, of, ends)


def test_views_are_read_and_nothing_else_is_touched() -> None:
    layout = Layout(200, exponent=0)
    planes, ends = experts_of(layout), [1, 3, 3, 4, 6]
    wide = torch.randn(12, 412, device="cuda").bfloat16()
    x, before = wide[::2, 3:403:2], wide.clone()
    there = misaligned(on_gpu(planes))
    stops = torch.tensor(ends, device="cuda")
    actual = phi.grouped_linear(x, *there, stops, layout.columns, *settings(layout))
    assert is_close(actual, x, codec.decode(planes, layout), ends)
    assert torch.equal(wide, before)


def test_ends_that_are_out_of_range_touch_nothing() -> None:
    layout = Layout(128, exponent=0)
    planes, x = experts_of(layout), torch.randn(4, 128, device="cuda")
    for ends in ([-5, 2, 1, 99, 4], [9, 9, 9, 9, 9]):
        assert grouped(x, planes, ends, layout).shape == (4, OUT)
    torch.cuda.synchronize()


def test_a_bad_word_makes_its_results_nan() -> None:
    layout = Layout(128, exponent=0)
    planes = experts_of(layout)
    planes.scale[2, 7, 1] = 0
    x = torch.randn(4, 128, device="cuda")
    y = grouped(x, planes, [1, 2, 4, 4, 4], layout).isnan().cpu()
    assert y[2:, 7].all()
    assert int(y.sum()) == 2


@pytest.mark.parametrize("rows", [6, 400])
def test_in_a_graph(rows: int) -> None:
    layout = Layout(256, exponent=0)
    planes = on_gpu(experts_of(layout))
    x = torch.randn(rows, 256, device="cuda").bfloat16()
    ends = torch.tensor([1, 2, 2, 3, rows], device="cuda")

    def product() -> Tensor:
        result: Tensor = phi.grouped_linear(x, *planes, ends, 256, *settings(layout))
        return result

    product()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = product()
    ends.copy_(torch.tensor([0, 0, rows - 2, rows - 1, rows - 1]))
    x.normal_()
    graph.replay()
    assert same(y, product())


def test_no_rows_and_no_features() -> None:
    layout = Layout(128, exponent=0)
    planes = experts_of(layout)
    assert grouped(torch.randn(0, 128, device="cuda"), planes, [0] * 5, layout).shape == (0, OUT)
    empty = Planes(*(None if p is None else p[:, :0] for p in planes))
    assert grouped(torch.randn(3, 128, device="cuda"), empty, [3] * 5, layout).shape == (3, 0)


def test_gradients_reach_the_input() -> None:
    layout = Layout(128, exponent=0)
    planes, ends = experts_of(layout), [1, 3, 3, 4, 6]
    x = torch.randn(6, 128, device="cuda", requires_grad=True)
    grouped(x, planes, ends, layout).sum().backward()
    of = codec.decode(planes, layout).cuda()
    expected = torch.cat([of[e].sum(0).expand(n, -1) for e, n in ((0, 1), (1, 2), (3, 1), (4, 2))])
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)


def test_opcheck() -> None:
    layout = Layout(128, exponent=0)
    x, ends = torch.randn(4, 128, device="cuda"), torch.tensor([1, 2, 2, 3, 4], device="cuda")
    given = (x, *on_gpu(experts_of(layout)), ends, 128, *settings(layout))
    opcheck(phi.grouped_linear.default, given)
    opcheck(phi._grouped_few.default, given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ends": torch.zeros(4, dtype=torch.long)}, "one number an expert"),
        ({"ends": torch.zeros(5)}, "ends: expected torch.int32 or torch.int64"),
        ({"x": torch.zeros(3, 64)}, r"x: expected shape \(tokens, 128\)"),
    ],
    ids=["too few", "no integers", "x too narrow"],
)
def test_bad_arguments(changed: dict[str, Tensor], message: str) -> None:
    layout = Layout(128, exponent=0)
    x = changed.get("x", torch.zeros(3, 128)).cuda()
    ends = changed.get("ends", torch.zeros(5, dtype=torch.long)).cuda()
    for op in (phi.grouped_linear, phi._grouped_few):
        with pytest.raises(ValueError, match=message):
            op(x, *on_gpu(experts_of(layout)), ends, 128, *settings(layout))


def test_the_kernel_is_there() -> None:
    assert ops.compiled_cuda
    assert torch._C._dispatch_has_kernel_for_dispatch_key("phiquant::_grouped_few", "CUDA")
