"""linear on a GPU: tolerance, shapes, streams, graphs, the same bits every time."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional

from phiquant import codec
from phiquant.codec import Layout, Planes
from tests.cuda.support import (
    ON_A_GPU,
    compiled_exact,
    difficult,
    misaligned,
    on_gpu,
    phi,
    same,
    settings,
    typical_planes,
)
from tests.support import weight

pytestmark = ON_A_GPU
# Of sum |x||w|: one rounding of the weights to the dtype of x.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
EVERY_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
DEVIATIONS = pytest.mark.parametrize("deviation", [0, 2, 4, 8])


@pytest.fixture(autouse=True)
def sums_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch may round partial sums of its products to bf16; that is not what is tested here."""
    matmul = torch.backends.cuda.matmul
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(matmul, f"allow_{name}_reduced_precision_reduction", False)


def linear(x: Tensor, planes: Planes, bias: Tensor | None, layout: Layout) -> Tensor:
    return phi.linear(x, *planes, bias, layout.columns, *settings(layout))


def error(x: Tensor, of: Tensor, actual: Tensor, bias: Tensor | None = None) -> float:
    """The largest deviation from the exact product, as a part of sum |x||w|; of: fp32 weights."""
    wide, weights = x.double(), of.cuda().double()
    shift, size = (None, None) if bias is None else (bias.double(), bias.double().abs())
    expected = functional.linear(wide, weights, shift)
    unit = functional.linear(wide.abs(), weights.abs(), size)
    of_result = TOLERANCE[x.dtype] * expected.abs()  # the result is rounded, too
    return (((actual.double() - expected).abs() - of_result) / unit).max().item()


@EVERY_DTYPE
@DEVIATIONS
def test_within_tolerance(deviation: int, dtype: torch.dtype) -> None:
    for columns, rows in product((40, 64, 520, 4200), (1, 16, 37)):
        layout = Layout(columns, 4, deviation, exponent=0)
        planes = typical_planes(layout, rows)
        of = codec.decode(planes, layout)
        there, bias = on_gpu(planes), torch.randn(rows, dtype=dtype, device="cuda")
        for m, shift in product((1, 2, 3, 5, 8, 9, 33), (None, bias)):
            x = torch.randn(m, columns, dtype=dtype, device="cuda") * 0.1
            actual = linear(x, there, shift, layout)
            assert actual.dtype == dtype
            assert actual.shape == (m, rows)
            assert error(x, of, actual, shift) <= TOLERANCE[dtype], (columns, rows, m)


@HALVES
@pytest.mark.parametrize(
    ("grid", "index", "deviation", "size"),
    [("phi", 4, 4, 32), ("phi", 4, 4, 128), ("phi", 3, 2, 64), ("golden", 4, 4, 64)],
)
def test_every_other_format(
    grid: str, index: int, deviation: int, size: int, dtype: torch.dtype
) -> None:
    layout = Layout(400, index, deviation, size, grid, 0)
    planes = typical_planes(layout, 21)
    x = torch.randn(3, 400, dtype=dtype, device="cuda")
    of = codec.decode(planes, layout)
    assert error(x, of, linear(x, on_gpu(planes), None, layout)) <= TOLERANCE[dtype]


@HALVES
@DEVIATIONS
def test_one_weight_at_a_time(deviation: int, dtype: torch.dtype) -> None:
    """What a single code is multiplied with is its level, rounded once at most."""
    layout = Layout(256, 4, deviation, exponent=0)
    planes = typical_planes(layout, 48)
    of = codec.decode(planes, layout)
    x = torch.eye(256, dtype=dtype, device="cuda")
    columns = torch.cat(
        [linear(x[i : i + 8], on_gpu(planes), None, layout) for i in range(0, 256, 8)]
    )
    expected = of.t().cuda().double()
    allowed = 2 * TOLERANCE[dtype] * expected.abs() + torch.finfo(dtype).smallest_normal
    assert bool(((columns.double() - expected).abs() <= allowed).all())


ONE_ROW = pytest.mark.parametrize(
    ("rows", "columns"),
    [(1, 512), (37, 1533), (2200, 1536), (16, 4096), (5000, 2560), (70000, 512), (33, 14336)],
    ids=str,
)


def indices_on_gpu(rows: int, columns: int) -> tuple[Planes, Layout, Tensor]:
    """What a kernel of its own takes with one row of x, and what it decodes to."""
    layout = Layout(columns, 4, 0, exponent=0)
    planes = on_gpu(typical_planes(layout, rows))
    return planes, layout, phi.decode(*planes, columns, *settings(layout), torch.float32)


@HALVES
@ONE_ROW
def test_one_row_with_indices_alone(rows: int, columns: int, dtype: torch.dtype) -> None:
    """Numbers of very different sizes in a group, and groups of zeros."""
    planes, layout, of = indices_on_gpu(rows, columns)
    bias = torch.randn(rows, dtype=dtype, device="cuda")
    exponents = torch.randint(-9, 4, (1, columns), device="cuda")
    x = (torch.randn(1, columns, device="cuda") * exponents.float().exp2()).to(dtype)
    x[:, columns // 3 : columns // 3 + 200] = 0
    for given, shift in ((x, None), (x, bias), (torch.zeros_like(x), bias)):
        y = linear(given, planes, shift, layout)
        assert error(given, of, y, shift) <= TOLERANCE[dtype]
        assert same(linear(given, planes, shift, layout), y)


@HALVES
def test_one_weight_and_one_row_at_a_time(dtype: torch.dtype) -> None:
    planes, layout, of = indices_on_gpu(48, 512)
    x = torch.eye(512, dtype=dtype, device="cuda")
    columns = torch.cat([linear(x[i : i + 1], planes, None, layout) for i in range(512)])
    expected = of.t().double()
    allowed = 2 * TOLERANCE[dtype] * expected.abs() + torch.finfo(dtype).smallest_normal
    assert bool(((columns.double() - expected).abs() <= allowed).all())


@HALVES
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")], ids=str)
def test_one_row_that_is_not_finite(value: float, dtype: torch.dtype) -> None:
    planes, layout, _ = indices_on_gpu(100, 1536)
    x = torch.randn(1, 1536, dtype=dtype, device="cuda")
    x[0, 700] = value
    assert not bool(linear(x, planes, None, layout).isfinite().any())


def test_bad_words_with_one_row() -> None:
    layout = Layout(64 * 16, 4, 0, exponent=0)
    planes = typical_planes(layout, 40)
    for row, word in ((3, 0), (17, 0x7C00), (39, 0x03F8)):
        planes.scale[row, row % 16] = word
    x = torch.randn(1, 64 * 16, device="cuda", dtype=torch.bfloat16)
    y = linear(x, on_gpu(planes), None, layout)
    assert y.isnan().flatten().nonzero().flatten().tolist() == [3, 17, 39]


@HALVES
@pytest.mark.parametrize("m", [1, 2, 3, 4, 7, 8, 20])
def test_exact_weights(m: int, dtype: torch.dtype) -> None:
    for columns in (70, 512, 1100, 4096):
        of = weight(19, columns, dtype=dtype)
        layout = Layout(columns, exponent=-10, stored_dtype=dtype)
        planes = on_gpu(compiled_exact(of, layout))
        x, bias = torch.randn(m, columns, dtype=dtype).cuda(), torch.randn(19, dtype=dtype).cuda()
        allowed = 2.0**-20 if m <= 8 else TOLERANCE[dtype]  # torch's product sums as it likes
        assert error(x, of.float(), linear(x, planes, bias, layout), bias) <= allowed


def test_exact_weights_that_are_not_finite() -> None:
    of = difficult(torch.bfloat16)
    layout = Layout(of.shape[1], exponent=-10, stored_dtype=torch.bfloat16)
    x = torch.ones(1, of.shape[1], dtype=torch.bfloat16, device="cuda")
    y = linear(x, on_gpu(compiled_exact(of, layout)), None, layout)
    assert torch.equal(y.isnan(), functional.linear(x, of.cuda()).isnan())


@DEVIATIONS
def test_rows_of_very_different_numbers(deviation: int) -> None:
    """bf16 has more exponents than the tensor cores are given: groups are shifted apart."""
    layout = Layout(512, 4, deviation, exponent=0)
    planes = typical_planes(layout, 16)
    of = codec.decode(planes, layout)
    for m in (1, 8):
        sizes = torch.tensor([-100.0, -60, -3, 0, 3, 40, 100, 118]).exp2().repeat_interleave(64)
        for part in torch.eye(8):
            x = (torch.randn(m, 512) * sizes * part.repeat_interleave(64)).bfloat16().cuda()
            assert error(x, of, linear(x, on_gpu(planes), None, layout)) <= 2.0**-8


@pytest.mark.parametrize("shape", [(200,), (1, 200), (2, 3, 200), (0, 200), (3, 0, 200)], ids=str)
def test_shapes_of_x(shape: tuple[int, ...]) -> None:
    layout = Layout(200, exponent=0)
    planes = typical_planes(layout, 7)
    x = torch.randn(shape, device="cuda", dtype=torch.float16)
    expected = functional.linear(x.float(), codec.decode(planes, layout).cuda())
    actual = linear(x, on_gpu(planes), None, layout)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=2e-2)


def test_no_output_features() -> None:
    layout = Layout(200)
    empty = Planes(*(None if p is None else p[:0] for p in on_gpu(typical_planes(layout, 7))))
    assert linear(torch.randn(3, 200, device="cuda").half(), empty, None, layout).shape == (3, 0)


@HALVES
@pytest.mark.parametrize("m", [2, 30])
def test_views_are_read_and_nothing_else_is_touched(m: int, dtype: torch.dtype) -> None:
    layout = Layout(200, exponent=0)
    planes = typical_planes(layout, 7)
    wide = torch.randn(2 * m, 412, dtype=dtype, device="cuda")
    x, before = wide[::2, 3:403:2], wide.clone()
    of = codec.decode(planes, layout)
    assert error(x, of, linear(x, misaligned(planes), None, layout)) <= TOLERANCE[dtype]
    flat = wide.flatten()[1 : 1 + 200 * m].view(m, 200)  # whole rows, off 16 bytes
    assert error(flat, of, linear(flat, on_gpu(planes), None, layout)) <= TOLERANCE[dtype]
    assert torch.equal(wide, before)


@HALVES
@DEVIATIONS
def test_the_same_bits_every_time(deviation: int, dtype: torch.dtype) -> None:
    layout = Layout(4096, 4, deviation, exponent=0)
    planes = on_gpu(typical_planes(layout, 1000))
    for m in (1, 4, 8):
        x = torch.randn(m, 4096, device="cuda", dtype=dtype)
        first = linear(x, planes, None, layout)
        assert all(same(linear(x, planes, None, layout), first) for _ in range(3))


@DEVIATIONS
@pytest.mark.parametrize(
    ("rows", "columns", "m"),
    [(5000, 520, 1), (2200, 1000, 2), (4111, 64, 8), (70000, 64, 8), (33, 14336, 4)],
    ids=lambda size: str(size),
)
def test_more_tiles_than_blocks_and_uneven_shares(
    deviation: int, rows: int, columns: int, m: int
) -> None:
    layout = Layout(columns, 4, deviation, exponent=0)
    planes = on_gpu(typical_planes(layout, rows))
    of = phi.decode(*planes, columns, *settings(layout), torch.float32)
    x = torch.randn(m, columns, device="cuda", dtype=torch.bfloat16)
    x[:, ::3] = 0
    assert error(x, of, linear(x, planes, None, layout)) <= 2.0**-8


@pytest.mark.parametrize("m", [1, 4])
def test_each_product_waits_for_what_it_multiplies(m: int) -> None:
    """Kernels begin before the one ahead of them has ended; its result is not read before."""
    layout = Layout(1024, exponent=0)
    many = [on_gpu(typical_planes(layout, 1024)) for _ in range(6)]
    x = torch.randn(m, 1024, device="cuda", dtype=torch.bfloat16)

    def through(wait: bool) -> Tensor:
        y = x
        for planes in many:
            y = linear(y, planes, None, layout)
            if wait:
                torch.cuda.synchronize()
        return y

    expected = through(wait=True)
    assert bool((expected != 0).any())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = through(wait=False)
    for _ in range(5):
        graph.replay()
        assert same(y, expected)
        assert same(through(wait=False), expected)


def test_rows_too_long_to_be_kept_together() -> None:
    layout = Layout(64 * 300, exponent=0)
    planes = typical_planes(layout, 20)
    x = torch.randn(8, layout.columns, device="cuda", dtype=torch.bfloat16) * 0.1
    of = codec.decode(planes, layout)
    assert error(x, of, linear(x, on_gpu(planes), None, layout)) <= 2.0**-8


def test_a_bad_word_makes_its_rows_nan() -> None:
    layout = Layout(64 * 9, exponent=0)
    planes = typical_planes(layout, 5)
    planes.scale[3, 8] = 0
    x = torch.randn(2, 64 * 9, device="cuda", dtype=torch.bfloat16)
    y = linear(x, on_gpu(planes), None, layout).cpu()
    assert torch.equal(y.isnan().any(0), torch.arange(5) == 3)


@pytest.mark.parametrize("m", [1, 8, 40])
@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
def test_in_a_graph_on_its_own_stream(m: int, exact: bool) -> None:
    of = weight(64, 1024, dtype=torch.bfloat16)
    layout = Layout(1024, exponent=-10, stored_dtype=torch.bfloat16)
    planes = on_gpu(compiled_exact(of, layout))
    if not exact:
        planes, layout = Planes(*planes[:4]), layout.without_remainder
    x = torch.randn(m, 1024, device="cuda", dtype=torch.bfloat16)
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


@HALVES
@DEVIATIONS
def test_opcheck(deviation: int, dtype: torch.dtype) -> None:
    layout = Layout(128, 4, deviation, exponent=-10)
    planes = on_gpu(typical_planes(layout, 6))
    x = torch.randn(3, 128, dtype=dtype, device="cuda", requires_grad=True)
    given = (*planes, None, 128, *settings(layout))
    opcheck(phi.linear.default, (x, *given))
    opcheck(phi.linear_int8.default, (x.detach(), *given))
    opcheck(phi.decode.default, (*planes, 128, *settings(layout), dtype))
    rows = torch.tensor([[5, 0, 3]], device="cuda")
    opcheck(phi.embedding.default, (rows, *planes, 128, *settings(layout), dtype))


def test_what_is_elsewhere_is_refused() -> None:
    layout = Layout(128)
    planes, half = typical_planes(layout, 6), torch.randn(2, 128, device="cuda").half()
    with pytest.raises(ValueError, match="x: expected a tensor on the weight's GPU"):
        linear(torch.randn(2, 128), on_gpu(planes), None, layout)
    with pytest.raises(ValueError, match="its planes are on different devices"):
        linear(half, on_gpu(planes)._replace(index=planes.index), None, layout)
    with pytest.raises(ValueError, match=r"bias: expected torch.float16"):
        linear(half, on_gpu(planes), torch.zeros(6, device="cuda"), layout)
