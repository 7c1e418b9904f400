"""linear with more than 32 rows of x on a GPU: large enough to be multiplied by tiles on Hopper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from phiquant import codec
from phiquant.codec import Layout, Planes
from tests.cuda.support import (
    ON_A_GPU,
    misaligned,
    on_gpu,
    phi,
    same,
    settings,
    surrounded,
    typical_planes,
)
from tests.cuda.test_linear import DEVIATIONS, HALVES, TOLERANCE, error, linear

pytestmark = ON_A_GPU
# Outputs x inputs: one round of whole tiles; tiles whose last ones are not whole, in both
# directions; few outputs, so that blocks share a tile's inputs.
SHAPES = {"whole": (14336, 512), "ragged": (14001, 488), "shared": (4001, 4096)}
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
EVERY_M = pytest.mark.parametrize("m", [33, 64, 65, 100, 128, 190, 256, 300, 1000])


@pytest.fixture(autouse=True)
def sums_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch may round partial sums of its products to bf16; that is not what is tested here."""
    matmul = torch.backends.cuda.matmul
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(matmul, f"allow_{name}_reduced_precision_reduction", False)


def decoded(planes: Planes, layout: Layout) -> Tensor:
    return phi.decode(*planes, layout.columns, *settings(layout), torch.float32)


@EVERY_SHAPE
@EVERY_M
@DEVIATIONS
def test_within_tolerance(deviation: int, m: int, shape: tuple[int, int]) -> None:
    rows, columns = shape
    layout = Layout(columns, 4, deviation, exponent=0)
    planes = on_gpu(typical_planes(layout, rows))
    of = decoded(planes, layout)
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(m, columns, dtype=dtype, device="cuda") * 0.1
        bias = torch.randn(rows, dtype=dtype, device="cuda")
        actual = linear(x, planes, bias, layout)
        assert actual.dtype == dtype
        assert actual.shape == (m, rows)
        assert error(x, of, actual, bias) <= TOLERANCE[dtype]


@pytest.mark.parametrize("size", [32, 64, 128])
def test_every_group_size_with_a_short_last_group(size: int) -> None:
    layout = Layout(1032, 4, 4, size, exponent=0)
    planes = on_gpu(typical_planes(layout, 7001))
    x = torch.randn(130, 1032, dtype=torch.bfloat16, device="cuda")
    assert error(x, decoded(planes, layout), linear(x, planes, None, layout)) <= 2.0**-8


@HALVES
@DEVIATIONS
def test_one_weight_at_a_time(deviation: int, dtype: torch.dtype) -> None:
    """What a single code is multiplied with is its level, rounded once to the dtype of x."""
    layout = Layout(256, 4, deviation, exponent=0)
    planes = typical_planes(layout, 14336)
    columns = linear(
        torch.eye(256, dtype=dtype, device="cuda"), on_gpu(planes), None, layout
    ).double()
    expected = codec.decode(planes, layout).t().cuda().double()
    allowed = 1.01 * TOLERANCE[dtype] * expected.abs() + torch.finfo(dtype).smallest_normal
    assert bool(((columns - expected).abs() <= allowed).all())


@HALVES
def test_indices_alone_have_the_bits_of_decode(dtype: torch.dtype) -> None:
    layout = Layout(256, 4, 0, exponent=0)
    planes = on_gpu(typical_planes(layout, 14336))
    columns = linear(torch.eye(256, dtype=dtype, device="cuda"), planes, None, layout)
    weights = phi.decode(*planes, 256, *settings(layout), dtype)
    assert same(columns + 0, weights.t().contiguous() + 0)  # one zero has no sign


@HALVES
@pytest.mark.parametrize("shape", [(14001, 488), (4001, 4096)], ids=str)
def test_views_are_read_and_nothing_else_is_touched(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    rows, columns = shape
    layout = Layout(columns, exponent=0)
    there = on_gpu(typical_planes(layout, rows))
    of = decoded(there, layout)
    wide = torch.randn(200, columns + 9, dtype=dtype, device="cuda")
    before = wide.clone()
    strided, offset = wide[::2, 1:-8], surrounded(wide[:100, :columns].contiguous())[0]
    for x, planes in ((strided, there), (offset, there), (strided, misaligned(there))):
        assert error(x, of, linear(x, planes, None, layout)) <= TOLERANCE[dtype]
    assert torch.equal(wide, before)


@DEVIATIONS
@EVERY_SHAPE
def test_what_is_around_the_result_stays(shape: tuple[int, int], deviation: int) -> None:
    """The allocator hands freed memory out again: results in the middle of known values."""
    rows, columns = shape
    layout = Layout(columns, 4, deviation, exponent=0)
    planes = on_gpu(typical_planes(layout, rows))
    x = torch.randn(100, columns, dtype=torch.bfloat16, device="cuda")
    size = 100 * rows * 2
    pool = torch.full((3 * ((size + 511) // 512) * 512,), 0x55, dtype=torch.uint8, device="cuda")
    neighbours = [torch.full((size,), 0x55, dtype=torch.uint8, device="cuda") for _ in range(3)]
    del neighbours[1]
    linear(x, planes, None, layout)
    torch.cuda.synchronize()
    for sentinel in (pool, *neighbours):
        assert bool((sentinel == 0x55).all())


@EVERY_SHAPE
@DEVIATIONS
def test_the_same_bits_every_time(deviation: int, shape: tuple[int, int]) -> None:
    rows, columns = shape
    layout = Layout(columns, 4, deviation, exponent=0)
    planes = on_gpu(typical_planes(layout, rows))
    for m in (60, 100, 190, 256):
        x = torch.randn(m, columns, device="cuda", dtype=torch.bfloat16)
        first = linear(x, planes, None, layout)
        assert all(same(linear(x, planes, None, layout), first) for _ in range(3))


@EVERY_SHAPE
@DEVIATIONS
def test_a_bad_word_makes_its_rows_nan(deviation: int, shape: tuple[int, int]) -> None:
    rows, columns = shape
    layout = Layout(columns, 4, deviation, exponent=0)
    planes = typical_planes(layout, rows)
    planes.scale[3, 0] = 0
    planes.scale[rows - 1, layout.groups - 1] = 0x7C00
    x = torch.randn(128, columns, device="cuda", dtype=torch.bfloat16)
    bad = linear(x, on_gpu(planes), None, layout).isnan().any(0).cpu()
    assert bad.nonzero().flatten().tolist() == [3, rows - 1]


@EVERY_SHAPE
@DEVIATIONS
def test_in_a_graph_on_its_own_stream(deviation: int, shape: tuple[int, int]) -> None:
    rows, columns = shape
    layout = Layout(columns, 4, deviation, exponent=0)
    planes = on_gpu(typical_planes(layout, rows))
    x = torch.randn(128, columns, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        linear(x, planes, None, layout)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear(x, planes, None, layout)
    for _ in range(2):
        x.normal_()
        graph.replay()
        assert same(y, linear(x, planes, None, layout))


@DEVIATIONS
@pytest.mark.parametrize("m", [64, 128, 192, 256])
def test_every_step_counts_once(m: int, deviation: int) -> None:
    """Stages are used again and again: where x is 0 but for one step, only that is seen."""
    layout = Layout(4096, 4, deviation, exponent=0)
    planes = on_gpu(typical_planes(layout, 14336))
    of = decoded(planes, layout)
    every = torch.randn(m, 4096, device="cuda", dtype=torch.bfloat16)
    for step in (0, 1, 7, 8, 31, 62, 63):
        x = torch.zeros_like(every)
        x[:, step * 64 : step * 64 + 64] = every[:, step * 64 : step * 64 + 64]
        assert error(x, of, linear(x, planes, None, layout)) <= 2.0**-8


def test_numbers_of_very_different_size() -> None:
    """x is multiplied as it is: no column loses bits to another."""
    layout = Layout(512, 4, 4, exponent=0)
    planes = typical_planes(layout, 14336)
    sizes = torch.tensor([-100.0, -60, -3, 0, 3, 40, 90, 100]).exp2().repeat_interleave(64)
    x = (torch.randn(65, 512) * sizes).bfloat16().cuda()
    of = codec.decode(planes, layout)
    assert error(x, of, linear(x, on_gpu(planes), None, layout)) <= 2.0**-8


def test_an_infinity_is_one_of_torchs() -> None:
    layout = Layout(512, 4, 4, exponent=0)
    planes = on_gpu(typical_planes(layout, 14336))
    x = torch.randn(65, 512, device="cuda", dtype=torch.bfloat16)
    x[7, 3] = torch.inf
    expected = functional.linear(x.float(), decoded(planes, layout))
    actual = linear(x, planes, None, layout)
    assert torch.equal(actual.isinf(), expected.isinf())
    assert not bool(actual.isnan().any())
