"""linear of up to 16 rows: how weights are cut, edges, the same bits always."""

from __future__ import annotations

import pytest
import torch

from phiquant import codec
from phiquant.codec import Layout
from tests.cuda.support import ON_A_GPU, on_gpu, same, surrounded, typical_planes
from tests.cuda.test_linear import HALVES, TOLERANCE, error, linear, sums_in_fp32

pytestmark = ON_A_GPU
__all__ = ["sums_in_fp32"]  # used by every test
ROWS = (5, 8, 9, 16)
LEVEL_ERROR = 2.0**-9.8  # csrc/cuda/few_rows_levels.cuh
# Of an H100's 132 blocks each takes 1 to 8 tiles of 16 rows; then a second pass. Columns are one
# block's or two blocks'; the last of a step, a box and a group are missing.
SHAPES = [
    *((rows, columns) for rows in (1, 17, 700, 4100, 7000, 12000) for columns in (64, 200, 776)),
    (14336, 256),
    (18000, 192),
    (18000, 1032),
    (300, 14336),
]


DEVIATIONS = pytest.mark.parametrize("deviation_bits", [0, 2, 4])


@DEVIATIONS
@HALVES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_tolerance(shape: tuple[int, int], dtype: torch.dtype, deviation_bits: int) -> None:
    rows, columns = shape
    layout = Layout(columns, 4, deviation_bits, exponent=0)
    planes = typical_planes(layout, rows)
    of, there = codec.decode(planes, layout), on_gpu(planes)
    bias = torch.randn(rows, dtype=dtype, device="cuda")
    for m in ROWS:
        x = torch.randn(m, columns, dtype=dtype, device="cuda") * 0.1
        for shift in (None, bias):
            actual = linear(x, there, shift, layout)
            assert error(x, of, actual, shift) <= TOLERANCE[dtype], m


@DEVIATIONS
@HALVES
def test_each_weight_is_close(dtype: torch.dtype, deviation_bits: int) -> None:
    """Of one weight at a time only its level and the result are rounded: scales are fp32."""
    layout = Layout(256, 4, deviation_bits, exponent=0)
    planes = typical_planes(layout, 48)
    expected = codec.decode(planes, layout).t().cuda().double()
    x = torch.eye(256, dtype=dtype, device="cuda")
    there = on_gpu(planes)
    found = torch.cat([linear(x[i : i + 16], there, None, layout) for i in range(0, 256, 16)])
    relative = TOLERANCE[dtype] + LEVEL_ERROR
    allowed = relative * expected.abs() + torch.finfo(dtype).smallest_normal
    assert bool(((found.double() - expected).abs() <= allowed).all())


@DEVIATIONS
@pytest.mark.parametrize("columns", [256, 1024])
def test_a_row_has_the_same_bits_in_any_company(columns: int, deviation_bits: int) -> None:
    layout = Layout(columns, 4, deviation_bits, exponent=0)
    planes = on_gpu(typical_planes(layout, 5000))
    x = torch.randn(16, columns, device="cuda", dtype=torch.bfloat16)
    whole = linear(x, planes, None, layout)
    for m in ROWS:
        assert all(same(linear(x[:m], planes, None, layout), whole[:m]) for _ in range(3))


def test_few_rows_of_a_large_weight_have_the_bits_they_have_among_many() -> None:
    """With 4 deviation bits and 2^25 weights one row is multiplied by this kernel, too."""
    layout = Layout(4104, 4, 4, exponent=0)
    planes = typical_planes(layout, 8200)
    x = torch.randn(16, layout.columns, device="cuda", dtype=torch.bfloat16)
    of, there = codec.decode(planes, layout), on_gpu(planes)
    whole = linear(x, there, None, layout)
    assert error(x, of, whole) <= TOLERANCE[x.dtype]
    for m in (1, 2, 4):
        assert same(linear(x[:m], there, None, layout), whole[:m]), m


@DEVIATIONS
@HALVES
def test_rows_that_are_zero_or_not_finite_stay_apart(
    dtype: torch.dtype, deviation_bits: int
) -> None:
    layout = Layout(512, 4, deviation_bits, exponent=0)
    planes = on_gpu(typical_planes(layout, 2200))
    x = torch.randn(12, 512, dtype=dtype, device="cuda")
    plain = linear(x, planes, None, layout)
    x[3], x[5, 7], x[6, 511] = 0, torch.nan, torch.inf
    y = linear(x, planes, None, layout)
    assert torch.equal(y[3], torch.zeros_like(y[3]))
    assert bool(y[5].isnan().all())
    assert not bool(y[6].isfinite().any())
    others = [i for i in range(12) if i not in (3, 5, 6)]
    assert same(y[others], plain[others])


@DEVIATIONS
def test_nothing_beyond_a_plane_or_x_is_read_or_written(deviation_bits: int) -> None:
    layout = Layout(64 * 9, 4, deviation_bits, exponent=0)
    planes = on_gpu(typical_planes(layout, 2131))
    x = torch.randn(7, layout.columns, dtype=torch.bfloat16, device="cuda")
    wanted = linear(x, planes, None, layout)
    inner = type(planes)(*(None if of is None else surrounded(of, 64)[0] for of in planes))
    held, buffer = surrounded(x, 64)
    before = buffer.clone()
    assert same(linear(held, inner, None, layout), wanted)
    assert torch.equal(buffer, before)


@DEVIATIONS
@pytest.mark.parametrize("word", [0, 0x7C08], ids=["zero", "infinite"])
@pytest.mark.parametrize("group", [0, 13])
def test_a_bad_word_makes_its_row_nan(group: int, word: int, deviation_bits: int) -> None:
    layout = Layout(64 * 14, 4, deviation_bits, exponent=0)
    planes = typical_planes(layout, 200)
    planes.scale.view(torch.int16)[133, group] = word
    x = torch.randn(11, layout.columns, device="cuda", dtype=torch.bfloat16)
    y = linear(x, on_gpu(planes), None, layout).cpu()
    assert torch.equal(y.isnan().all(0), torch.arange(200) == 133)
    assert torch.equal(y.isnan().any(0), torch.arange(200) == 133)


@DEVIATIONS
def test_products_that_follow_each_other_in_a_graph(deviation_bits: int) -> None:
    """A kernel may begin while the one before it, whose result is its x, still runs."""
    first = Layout(1024, 4, deviation_bits, exponent=0)
    second = Layout(4000, 4, deviation_bits, exponent=0)
    planes = on_gpu(typical_planes(first, 4000)), on_gpu(typical_planes(second, 1024))

    def both(x: torch.Tensor) -> torch.Tensor:
        return linear(linear(x, planes[0], None, first), planes[1], None, second)

    x = torch.randn(10, 1024, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        both(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both(both(x))
    for _ in range(3):
        x.normal_()
        graph.replay()
        torch.cuda.synchronize()
        assert same(found, both(both(x)))
