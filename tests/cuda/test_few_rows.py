"""linear of 9 to 64 rows on a GPU, codes in registers: tolerance, edges, the same bits always."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phiquant import codec
from phiquant.codec import Layout
from tests.cuda.support import ON_A_GPU, misaligned, on_gpu, same, surrounded, typical_planes
from tests.cuda.test_linear import (
    DEVIATIONS,
    HALVES,
    TOLERANCE,
    error,
    linear,
    sums_in_fp32,
)

pytestmark = ON_A_GPU
__all__ = ["sums_in_fp32"]  # used by every test
EVERY_SHAPE = pytest.mark.parametrize("m", [9, 16, 17, 32, 33, 64, 65])


@EVERY_SHAPE
@HALVES
@DEVIATIONS
def test_within_tolerance(deviation: int, dtype: torch.dtype, m: int) -> None:
    for columns, rows in ((40, 1), (64, 130), (192, 700), (520, 37), (2100, 257), (4096, 300)):
        layout = Layout(columns, 4, deviation, exponent=0)
        planes = typical_planes(layout, rows)
        of, there = codec.decode(planes, layout), on_gpu(planes)
        for bias in (None, torch.randn(rows, dtype=dtype, device="cuda")):
            x = torch.randn(m, columns, dtype=dtype, device="cuda") * 0.1
            actual = linear(x, there, bias, layout)
            assert actual.dtype == dtype
            assert actual.shape == (m, rows)
            assert error(x, of, actual, bias) <= TOLERANCE[dtype], (columns, rows)


@pytest.mark.parametrize("shape", [(7, 64 * 130), (1024, 4096), (3000, 320)], ids=str)
def test_tiles_that_blocks_share(shape: tuple[int, int]) -> None:
    """Many blocks to a tile, and tiles that end inside of a block's share."""
    layout = Layout(shape[1], exponent=0)
    planes = typical_planes(layout, shape[0])
    of = codec.decode(planes, layout)
    for m in (12, 48):
        x = torch.randn(m, shape[1], dtype=torch.bfloat16, device="cuda")
        assert error(x, of, linear(x, on_gpu(planes), None, layout)) <= 2.0**-8


@HALVES
@DEVIATIONS
def test_one_weight_at_a_time(deviation: int, dtype: torch.dtype) -> None:
    """A level has three roundings to fp16: 2^-10 of it, as counted over all codes and bends."""
    layout = Layout(256, 4, deviation, exponent=0)
    planes = typical_planes(layout, 48)
    of, there = codec.decode(planes, layout), on_gpu(planes)
    x = torch.eye(256, dtype=dtype, device="cuda")
    columns = torch.cat([linear(x[i : i + 16], there, None, layout) for i in range(0, 256, 16)])
    expected = of.t().cuda().double()
    off = 2.0**-10 + TOLERANCE[dtype]  # the result is rounded, too
    allowed = off * expected.abs() + torch.finfo(dtype).smallest_normal
    assert bool(((columns.double() - expected).abs() <= allowed).all())


@DEVIATIONS
def test_rows_of_very_different_numbers(deviation: int) -> None:
    """bf16 has more exponents than the tensor cores are given: rows are shifted apart."""
    layout = Layout(512, 4, deviation, exponent=0)
    planes = typical_planes(layout, 16)
    of = codec.decode(planes, layout)
    sizes = torch.linspace(-110, 110, 20).round().exp2().unsqueeze(1)
    x = (torch.randn(20, 512) * sizes).bfloat16().cuda()
    assert error(x, of, linear(x, on_gpu(planes), None, layout)) <= 2.0**-8
    x = (torch.randn(20, 512) * torch.linspace(-30, 0, 512).exp2()).bfloat16().cuda()
    assert error(x, of, linear(x, on_gpu(planes), None, layout)) <= 2.0**-8


@HALVES
def test_rows_that_are_zero_or_not_finite_stay_apart(dtype: torch.dtype) -> None:
    layout = Layout(320, exponent=0)
    planes = typical_planes(layout, 40)
    there = on_gpu(planes)
    x = torch.randn(24, 320, dtype=dtype, device="cuda")
    plain = linear(x, there, None, layout)
    x[3], x[5, 7], x[6, 319] = 0, torch.nan, torch.inf
    y = linear(x, there, None, layout)
    assert torch.equal(y[3], torch.zeros_like(y[3]))
    assert bool(y[5].isnan().all())
    assert not bool(y[6].isfinite().any())
    others = [i for i in range(24) if i not in (3, 5, 6)]
    assert same(y[others], plain[others])


@HALVES
@pytest.mark.parametrize("m", [12, 40])
def test_views_are_read_and_nothing_else_is_touched(m: int, dtype: torch.dtype) -> None:
    layout = Layout(200, exponent=0)
    planes = typical_planes(layout, 70)
    of, there = codec.decode(planes, layout), on_gpu(planes)
    wide = torch.randn(2 * m, 412, dtype=dtype, device="cuda")
    before = wide.clone()
    for x in (wide[::2, 3:403:2], wide.flatten()[1 : 1 + 200 * m].view(m, 200)):
        assert error(x, of, linear(x, there, None, layout)) <= TOLERANCE[dtype]
        assert error(x, of, linear(x, misaligned(planes), None, layout)) <= TOLERANCE[dtype]
    assert torch.equal(wide, before)


def test_planes_are_not_read_beyond_their_ends() -> None:
    """Buffers of other values around the planes change nothing."""
    layout = Layout(64 * 9, exponent=0)
    planes = on_gpu(typical_planes(layout, 131))
    x = torch.randn(30, layout.columns, dtype=torch.bfloat16, device="cuda")
    inner = planes._replace(
        index=surrounded(planes.index, 64)[0],
        deviation=surrounded(planes.deviation, 64)[0],
        scale=surrounded(planes.scale, 64)[0],
    )
    assert same(linear(x, inner, None, layout), linear(x, planes, None, layout))


@pytest.mark.parametrize("word", [0, 0x7C08], ids=["zero", "infinite"])
def test_a_bad_word_makes_its_row_nan(word: int) -> None:
    layout = Layout(64 * 9, exponent=0)
    planes = typical_planes(layout, 200)
    planes.scale.view(torch.int16)[133, 8] = word
    x = torch.randn(16, layout.columns, device="cuda", dtype=torch.bfloat16)
    y = linear(x, on_gpu(planes), None, layout).cpu()
    assert torch.equal(y.isnan().all(0), torch.arange(200) == 133)
    assert torch.equal(y.isnan().any(0), torch.arange(200) == 133)


@HALVES
@DEVIATIONS
def test_the_same_bits_every_time(deviation: int, dtype: torch.dtype) -> None:
    layout = Layout(4096, 4, deviation, exponent=0)
    planes = on_gpu(typical_planes(layout, 1000))
    for m in (9, 32, 64):
        x = torch.randn(m, 4096, device="cuda", dtype=dtype)
        first = linear(x, planes, None, layout)
        assert all(same(linear(x, planes, None, layout), first) for _ in range(5))


def test_a_row_has_the_same_bits_in_any_company() -> None:
    layout = Layout(1024, exponent=0)
    planes = on_gpu(typical_planes(layout, 500))
    x = torch.randn(16, 1024, device="cuda", dtype=torch.bfloat16)
    assert same(linear(x, planes, None, layout)[:9], linear(x[:9], planes, None, layout))


def many(x: Tensor, *weights: tuple[object, Layout]) -> list[Tensor]:
    return [linear(x, planes, None, layout) for planes, layout in weights]  # type: ignore[arg-type]


def test_products_that_follow_each_other_in_a_graph() -> None:
    """A product's kernels may begin while the one before them still runs."""
    weights = []
    for rows, columns, deviation in (
        (700, 1024, 0),
        (1024, 1024, 4),
        (64, 1024, 2),
        (4000, 1024, 4),
    ):
        layout = Layout(columns, 4, deviation, exponent=0)
        weights.append((on_gpu(typical_planes(layout, rows)), layout))
    x = torch.randn(20, 1024, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        many(x, *weights)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = many(x, *weights)
        found += many(found[1].contiguous(), *weights)
    for _ in range(3):
        x.normal_()
        graph.replay()
        torch.cuda.synchronize()
        expected = many(x, *weights)
        torch.cuda.synchronize()
        expected += many(expected[1], *weights)
        assert all(same(mine, its) for mine, its in zip(found, expected, strict=True))
