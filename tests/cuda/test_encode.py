"""encode on a GPU: the planes of the CPU's kernel, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import phiquant
from phiquant import PhiConfig, PhiTensor
from phiquant.codec import Layout
from tests.cuda.support import ON_A_GPU, layouts, phi, settings
from tests.test_kernels import hard_weights
from tests.test_kernels_choice import EVERY_KIND
from tests.test_kernels_exact import difficult

pytestmark = ON_A_GPU
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FITS = ("joint", "index", "deviation")


def same_planes(
    of: Tensor, layout: Layout, fit: str = "joint", importance: Tensor | None = None
) -> bool:
    there = None if importance is None else importance.cuda()
    wanted = phi.encode(of, importance, *settings(layout), fit)
    found = phi.encode(of.cuda(), there, *settings(layout), fit)
    assert all(plane.is_cuda for plane in found)
    return all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("layout", layouts(), ids=str)
@EVERY_DTYPE
def test_every_format(layout: Layout, dtype: torch.dtype) -> None:
    of = (torch.randn(13, 200) * 2.0 ** (layout.exponent / 4)).to(dtype).nan_to_num()
    for fit in FITS:
        assert same_planes(of, layout, fit)


@EVERY_KIND
@EVERY_DTYPE
def test_every_kind_of_weight(kind: Callable[[], Tensor], dtype: torch.dtype) -> None:
    of = kind().to(dtype).nan_to_num()
    for deviation, size, fit in ((4, 64, "joint"), (0, 32, "index"), (8, 128, "deviation")):
        layout = Layout(of.shape[1], 4, deviation, size, exponent=-10)
        assert same_planes(of, layout, fit)


@EVERY_DTYPE
@pytest.mark.parametrize("exponent", [-112, -10, 112])
@pytest.mark.parametrize("grid", ["phi", "golden"])
def test_borders_of_the_numbers(grid: str, exponent: int, dtype: torch.dtype) -> None:
    """Zeros of both signs, denormals, the largest numbers, groups that no scale fits."""
    of = hard_weights(dtype)
    for deviation in (0, 4, 8):
        assert same_planes(of, Layout(of.shape[1], 4, deviation, 64, grid, exponent))


@pytest.mark.parametrize("columns", [1, 7, 31, 33, 64, 100, 129, 1000])
@pytest.mark.parametrize("rows", [1, 5, 17])
def test_odd_shapes(rows: int, columns: int) -> None:
    for size in (32, 64, 128):
        assert same_planes(torch.randn(rows, columns), Layout(columns, 4, 4, size, exponent=-10))


def test_many_weights() -> None:
    assert same_planes(torch.randn(512, 4096) * 0.02, Layout(4096, exponent=-10))


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (64,), (2, 3, 100)], ids=str)
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    assert same_planes(torch.randn(shape), Layout(shape[-1], exponent=-10))


def test_strided_and_misaligned_weights_are_read_as_they_are() -> None:
    layout, wide = Layout(100, exponent=-10), torch.randn(40, 412).bfloat16().cuda()
    before = wide.clone()
    for of in (wide[::2, 3:103], wide[:, 1:201:2], wide.t()[5:105].t(), wide[0, 1:101]):
        found = phi.encode(of, None, *settings(layout), "joint")
        wanted = phi.encode(of.cpu().clone(), None, *settings(layout), "joint")
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(wide, before)


@pytest.mark.parametrize("columns", [256, 200])
def test_importance_of_columns(columns: int) -> None:
    of = torch.randn(9, columns)
    for importance in (torch.rand(columns), torch.rand(columns) * 1e30, torch.zeros(columns)):
        for deviation, fit in ((0, "joint"), (4, "joint"), (8, "deviation")):
            assert same_planes(of, Layout(columns, 4, deviation, exponent=-10), fit, importance)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_importance_is_refused(bad: float) -> None:
    importance = torch.ones(128, device="cuda")
    importance[70] = bad
    with pytest.raises(ValueError, match="importance: expected finite values >= 0"):
        phi.encode(torch.randn(2, 128, device="cuda"), importance, *settings(Layout(128)), "joint")


@EVERY_DTYPE
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("grid", ["phi", "golden"])
def test_weights_that_are_not_finite_are_refused(grid: str, bad: float, dtype: torch.dtype) -> None:
    of = torch.randn(5, 100, dtype=dtype, device="cuda")
    of[4, 99] = bad
    with pytest.raises(ValueError, match="holds a NaN or an infinity"):
        phi.encode(of, None, *settings(Layout(100, grid=grid)), "joint")


@pytest.mark.parametrize("fit", ["joint", "exact", "index", "deviation"])
@pytest.mark.parametrize("grid", ["phi", "golden"])
@EVERY_DTYPE
def test_lossy_planes_of_exact_weights(dtype: torch.dtype, grid: str, fit: str) -> None:
    """Bits of remainders have a price, and what is not finite is an exception."""
    for of in (difficult(dtype), (torch.randn(40, 512) * 0.02).to(dtype)):
        for deviation in (2, 4, 8):
            layout = Layout(of.shape[1], 4, deviation, 64, grid, -10, dtype)
            assert same_planes(of, layout, fit)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fit": "best"}, "fit must be one of"),
        ({"fit": "exact"}, "needs exact=True"),
        ({"dtype": torch.float64}, "weight: expected bfloat16, float16 or float32"),
        ({"importance": 64}, r"importance: expected shape \(128,\)"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], message: str) -> None:
    of = torch.randn(2, 128, device="cuda", dtype=changed.get("dtype", torch.float32))
    columns = changed.get("importance")
    importance = None if columns is None else torch.ones(columns, device="cuda")
    with pytest.raises(ValueError, match=message):
        phi.encode(of, importance, *settings(Layout(128)), changed.get("fit", "joint"))


def test_importance_elsewhere_is_refused() -> None:
    of = torch.randn(2, 128, device="cuda")
    with pytest.raises(ValueError, match="importance: expected a tensor on the weight's GPU"):
        phi.encode(of, torch.ones(128), *settings(Layout(128)), "joint")


def test_on_a_stream_of_its_own() -> None:
    layout, stream = Layout(4096, exponent=-10), torch.cuda.Stream()
    of = torch.randn(64, 4096, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        later = of * 2
        found = phi.encode(later, None, *settings(layout), "joint")
    wanted = phi.encode((of * 2).cpu(), None, *settings(layout), "joint")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))


def test_opcheck() -> None:
    of = torch.randn(3, 100, device="cuda")
    for importance in (None, torch.rand(100, device="cuda")):
        opcheck(phi.encode.default, (of, importance, *settings(Layout(100)), "joint"))


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
def test_a_model_on_the_gpu_is_compressed_as_on_the_cpu(exact: bool) -> None:
    torch.manual_seed(0)
    layers = (torch.nn.Linear(200, 64), torch.nn.Embedding(50, 96), torch.nn.Linear(64, 8))
    model = torch.nn.ModuleList(layers).bfloat16()
    there = torch.nn.ModuleList(
        torch.nn.Linear(*reversed(layer.weight.shape))
        if isinstance(layer, torch.nn.Linear)
        else torch.nn.Embedding(*layer.weight.shape)
        for layer in layers
    ).bfloat16()
    there.load_state_dict(model.state_dict())
    there.cuda()
    config = PhiConfig(exact=exact)
    reports = [phiquant.quantize_(one, config) for one in (model, there)]
    assert reports[0].bits_per_weight == reports[1].bits_per_weight
    for mine, its in zip(model, there, strict=True):
        assert isinstance(its.weight, PhiTensor)
        for plane, other in zip(mine.weight.planes, its.weight.planes, strict=True):
            assert (plane is None) == (other is None)
            assert plane is None or torch.equal(other.cpu(), plane)
