"""The compiled kernels of exact weights: the reference's planes and bits, and no read outside."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from phiquant import codec, ops
from phiquant.codec import Layout, Planes
from tests.support import DTYPES, weight
from tests.test_kernels import hard_weights, off_by_one, settings
from tests.test_kernels_linear import TOLERANCE, error

pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")
phi = torch.ops.phiquant
INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
FORMATS = [("phi", 4, 4, 64), ("phi", 2, 2, 32), ("phi", 5, 8, 128), ("golden", 3, 4, 64)]
EVERY_FORMAT = pytest.mark.parametrize(
    ("grid", "index", "deviation", "size"), FORMATS, ids=[f"{f[0]}-{f[1]}+{f[2]}" for f in FORMATS]
)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.view(INTEGERS[tensor.dtype])


def compiled_exact(of: Tensor, layout: Layout, fit: str = "joint") -> Planes:
    lossy = [p if p.shape[-1] else None for p in phi.encode(of, None, *settings(layout), fit)]
    return Planes(*lossy, *phi.encode_remainder(of, *lossy, *settings(layout)))


def compiled_decode(planes: Planes, layout: Layout, dtype: torch.dtype | None = None) -> Tensor:
    return phi.decode(*planes, layout.columns, *settings(layout), dtype or layout.stored_dtype)


def difficult(dtype: torch.dtype, columns: int = 1100) -> Tensor:
    """Hard rows, then infinities, NaN payloads, both zeros, denormals and maxima among others."""
    rows = hard_weights(dtype).repeat(1, -(-columns // 200))[:, :columns].clone()
    info = torch.finfo(dtype)
    special = [torch.inf, -torch.inf, torch.nan, 0.0, -0.0, info.max, info.min, info.tiny / 2]
    rows[0, ::37] = torch.tensor(special, dtype=dtype).repeat(columns)[: rows[0, ::37].numel()]
    bits_of(rows)[1, 3] = bits_of(torch.tensor(torch.nan, dtype=dtype)) ^ 5
    return rows


def every_pattern(dtype: torch.dtype) -> Iterator[Tensor]:
    """All 16-bit floats: ascending, and in an order that mixes magnitudes in every group."""
    patterns = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    yield patterns.view(64, 1024)
    yield patterns.view(64, 1024).t().contiguous()
    order = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))
    yield patterns[order].view(64, 1024)


def random_fp32(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(1 << 31), 1 << 31, (count // 1000, 1000), generator=generator)
    return patterns.to(torch.int32).view(torch.float32)


@EVERY_DTYPE
@EVERY_FORMAT
def test_planes_are_the_references_and_bring_every_bit_back(
    grid: str, index: int, deviation: int, size: int, dtype: torch.dtype
) -> None:
    of = difficult(dtype)
    layout = Layout(of.shape[1], index, deviation, size, grid, -10, dtype)
    for fit in ("joint", "exact"):
        planes = compiled_exact(of, layout, fit)
        lossy = codec.encode(of, layout, fit)
        for name, mine, theirs in zip(
            Planes._fields, planes, codec.encode_remainder(of, lossy, layout), strict=True
        ):
            assert (mine is None and theirs is None) or torch.equal(mine, theirs), name
        assert torch.equal(bits_of(compiled_decode(planes, layout)), bits_of(of))


@EVERY_DTYPE
@EVERY_FORMAT
def test_every_tier_decodes_to_the_references_bits_in_every_dtype(
    grid: str, index: int, deviation: int, size: int, dtype: torch.dtype
) -> None:
    layout = Layout(300, index, deviation, size, grid, -10, dtype)
    planes = compiled_exact(difficult(dtype, 300), layout)
    shallow = Planes(*planes[:4], exceptions=planes.exceptions)
    for wanted in DTYPES:
        for part, depth in ((planes, layout), (shallow, layout.without_remainder)):
            expected = codec.decode(part, depth, wanted)
            assert torch.equal(bits_of(compiled_decode(part, depth, wanted)), bits_of(expected))


@EVERY_DTYPE
@pytest.mark.parametrize("columns", [1, 63, 511, 512, 513, 1025])
def test_short_groups_and_blocks(columns: int, dtype: torch.dtype) -> None:
    of = weight(3, columns, dtype=dtype)
    layout = Layout(columns, exponent=-10, stored_dtype=dtype)
    assert torch.equal(bits_of(compiled_decode(compiled_exact(of, layout), layout)), bits_of(of))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_pattern_comes_back(dtype: torch.dtype) -> None:
    for of in every_pattern(dtype):
        for exponent in (-10, -100, 100):
            layout = Layout(of.shape[1], exponent=exponent, stored_dtype=dtype)
            planes = compiled_exact(of, layout)
            assert torch.equal(bits_of(compiled_decode(planes, layout)), bits_of(of))


def test_random_fp32_patterns_come_back() -> None:
    of = random_fp32(1_000_000)
    layout = Layout(of.shape[1], exponent=-10, stored_dtype=torch.float32)
    assert torch.equal(bits_of(compiled_decode(compiled_exact(of, layout), layout)), bits_of(of))


@EVERY_DTYPE
@pytest.mark.parametrize("rows", [1, 40, 300])
def test_products_are_those_of_the_decoded_weight(rows: int, dtype: torch.dtype) -> None:
    of = weight(rows, 700, dtype=dtype)
    layout = Layout(700, exponent=-10, stored_dtype=dtype)
    planes = compiled_exact(of, layout)
    for x_dtype, m in product(DTYPES, (0, 1, 2, 3, 5, 6, 7, 8, 13, 16, 17)):
        x = weight(m, 700, dtype=x_dtype, seed=1)
        actual = phi.linear(x, *planes, None, 700, *settings(layout))
        assert actual.shape == (m, rows)
        assert m == 0 or error(x, planes, layout, actual) <= TOLERANCE[x_dtype]


@pytest.mark.parametrize("rows", [1, 7, 41])
def test_a_row_of_x_has_the_same_bits_in_any_company(rows: int) -> None:
    of, x = weight(rows, 300, dtype=torch.bfloat16), torch.randn(16, 300)
    layout = Layout(300, exponent=-10, stored_dtype=torch.bfloat16)
    planes = compiled_exact(of, layout)
    alone = [phi.linear(row[None], *planes, None, 300, *settings(layout)) for row in x]
    for m in range(1, 17):
        together = phi.linear(x[:m], *planes, None, 300, *settings(layout))
        assert torch.equal(together, torch.cat(alone[:m])), m


def test_products_see_exceptions_at_every_tier() -> None:
    of = weight(30, 200)
    of[7, 3] = torch.inf
    layout = Layout(200, exponent=-10, stored_dtype=torch.float32)
    planes = compiled_exact(of, layout)
    shallow = Planes(*planes[:4], exceptions=planes.exceptions)
    for part, depth in ((planes, layout), (shallow, layout.without_remainder)):
        product_ = phi.linear(torch.ones(2, 200), *part, None, 200, *settings(depth))
        assert product_[:, 7].isposinf().all()
        assert product_.isfinite().sum() == 2 * 29


@EVERY_DTYPE
def test_embedding_decodes_the_rows_asked_for(dtype: torch.dtype) -> None:
    of = difficult(dtype)
    layout = Layout(of.shape[1], exponent=-10, stored_dtype=dtype)
    planes = compiled_exact(of, layout)
    indices = torch.tensor([[0, 5], [5, 1], [11, 0]])
    rows = phi.embedding(indices, *planes, of.shape[1], *settings(layout), dtype)
    assert torch.equal(bits_of(rows), bits_of(of)[indices])


def test_no_byte_outside_of_the_planes_is_used() -> None:
    of = difficult(torch.bfloat16)
    layout = Layout(of.shape[1], exponent=-10, stored_dtype=torch.bfloat16)
    planes = Planes(*(p if p is None else off_by_one(p) for p in compiled_exact(of, layout)))
    assert torch.equal(bits_of(compiled_decode(planes, layout)), bits_of(of))


def test_rows_may_have_starts_of_their_own() -> None:
    of = difficult(torch.float16)
    layout = Layout(of.shape[1], exponent=-10, stored_dtype=torch.float16)
    picked = codec.pick_rows(compiled_exact(of, layout), torch.tensor([9, 0, 3]), layout.columns)
    assert torch.equal(bits_of(compiled_decode(picked, layout)), bits_of(of[[9, 0, 3]]))


def test_weights_that_are_not_stored_exactly_are_refused() -> None:
    layout = Layout(128, stored_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"expected torch.bfloat16, as stored, got torch.float32"):
        phi.encode(weight(2, 128), None, *settings(layout), "joint")
    lossy = compiled_exact(weight(2, 128, dtype=torch.bfloat16), layout)[:4]
    with pytest.raises(ValueError, match=r"stored_dtype: expected torch.float32.* got None"):
        phi.encode_remainder(weight(2, 128), *lossy, *settings(layout.without_remainder))
    with pytest.raises(ValueError, match="needs exact=True"):
        phi.encode(weight(2, 128), None, *settings(layout.without_remainder), "exact")
