"""The compiled kernels against the readable reference: decoding, encoding, embedding."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from phiquant import codec, ops
from phiquant.codec import Layout, Planes, cells
from phiquant.codec.decode import join_codes
from phiquant.codec.layout import EXPONENTS
from phiquant.grid import DEVIATION_BITS, GRIDS, INDEX_BITS
from tests.codec.support import group_errors, index_tier, layout_for
from tests.support import DTYPES, weight

pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")
phi = torch.ops.phiquant
BITS = list(product(GRIDS, INDEX_BITS, DEVIATION_BITS))
BITS_IDS = [f"{grid}-{index}+{deviation}" for grid, index, deviation in BITS]
FITS = ("joint", "index", "deviation")  # test_kernels_exact.py has the other
EVERY_FORMAT = pytest.mark.parametrize(("grid", "index", "deviation"), BITS, ids=BITS_IDS)


def settings(layout: Layout) -> tuple[Any, ...]:
    """The layout as the ops take it, without columns."""
    bits = (layout.index_bits, layout.deviation_bits, layout.group_size)
    return *bits, layout.grid, layout.exponent, layout.stored_dtype


def random_planes(layout: Layout, rows: int) -> Planes:
    """Any codes, padding included, under any words: all bends, signs, smallest and largest."""

    def codes(bits: int) -> Tensor | None:
        return torch.randint(256, (rows, layout.row_bytes(bits))).to(torch.uint8) if bits else None

    shape = (rows, layout.groups)
    bends = torch.randint(layout.curve.bends, shape)
    magnitude = torch.randint(0x400 >> 3, 0x7C00 >> 3, shape) << 3
    magnitude[0], magnitude[-1] = 0x400, 0x7BF8
    words = magnitude | bends | torch.randint(2, shape) << 15
    planes = (layout.index_bits, layout.high_bits, layout.low_bits)
    return Planes(*map(codes, planes), words.to(torch.int16))


def compiled_encode(of: Tensor, layout: Layout, fit: str, importance: Tensor | None = None) -> Any:
    planes = phi.encode(of, importance, *settings(layout), fit)
    return Planes(*(plane if plane.shape[-1] else None for plane in planes))


@pytest.mark.parametrize("flush", [False, True], ids=["", "flush"])
@EVERY_FORMAT
def test_decode_gives_the_reference_bits(
    grid: str, index: int, deviation: int, flush: bool
) -> None:
    torch.set_flush_denormal(flush)
    for size, exponent in product(codec.GROUP_SIZES, (EXPONENTS[0], -10, EXPONENTS[-1])):
        layout = Layout(200, index, deviation, size, grid, exponent)
        planes = random_planes(layout, 5)
        for dtype in DTYPES:
            expected = codec.decode(planes, layout, dtype)
            actual = phi.decode(*planes, 200, *settings(layout), dtype)
            assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))
    if flush:
        assert torch.tensor(2.0**-149) * 1 == 0  # the mode is as it was


def hard_weights(dtype: torch.dtype) -> Tensor:
    """Rows of ordinary, heavy-tailed, tied, sparse, one-sided, tiny and huge weights."""
    normal = weight(12, 200)
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    rows = [
        *normal[:3],
        normal[3].sign() * normal[3].abs() ** 2.5,
        (normal[4] * 64).round() / 64,
        normal[5] * (torch.rand(200) < 0.1),
        normal[6].abs(),
        -normal[7].abs(),
        torch.zeros(200),
        normal[8] * smallest * 20,
        normal[9].clamp(-0.1, 0.1) * 10 * largest,
        torch.full((200,), -largest),
    ]
    return torch.stack(rows).to(dtype)


def scores(of: Tensor, planes: Planes, layout: Layout, fit: str) -> Tensor:
    """What the choice of words minimises, from what decoding gives, fp64 ``[..., groups]``."""
    deepest = group_errors(of, codec.decode(planes, layout), layout)
    index = group_errors(of, index_tier(planes, layout), layout)
    if fit == "index" or layout.deviation_bits == 0:
        return index
    return deepest if fit == "deviation" else index**2 * deepest


def same_choice(of: Tensor, actual: Planes, layout: Layout, fit: str) -> bool:
    """Whether words differ from the reference's at most where both are equally good."""
    expected = codec.encode(of, layout, fit)
    ratio = scores(of, actual, layout, fit) / scores(of, expected, layout, fit)
    differs = actual.scale != expected.scale
    few = differs.sum() <= 1 + differs.numel() // 1000
    return bool(few and ((ratio - 1).abs()[differs] < 1e-6).all())


@EVERY_FORMAT
def test_encode_chooses_as_the_reference(grid: str, index: int, deviation: int) -> None:
    of = hard_weights(torch.float32)[3:9]
    for size, fit in zip(codec.GROUP_SIZES, FITS, strict=True):
        bits = {"index_bits": index, "deviation_bits": deviation, "group_size": size}
        layout = layout_for(of, grid=grid, **bits)
        assert same_choice(of, compiled_encode(of, layout, fit), layout, fit)


@pytest.mark.parametrize("fit", FITS)
def test_encode_chooses_as_the_reference_for_many_weights(fit: str) -> None:
    of = weight(48, 1024)
    layout = layout_for(of)
    assert same_choice(of, compiled_encode(of, layout, fit), layout, fit)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EVERY_FORMAT
def test_codes_of_a_word_are_exact(
    grid: str, index: int, deviation: int, dtype: torch.dtype
) -> None:
    of = hard_weights(dtype)
    layout = layout_for(of.float(), index_bits=index, deviation_bits=deviation, grid=grid)
    planes = compiled_encode(of, layout, "index")
    scale, bend = (t.reshape(-1, 1) for t in codec.read_words(planes.scale, layout))
    padding = layout.groups * layout.group_size - 200
    groups = torch.nn.functional.pad(of.float(), (0, padding)).view(-1, layout.group_size)
    expected = cells.find(groups, scale, bend, layout).view(len(of), -1)[:, :200]
    codes = join_codes(planes, layout)
    assert torch.equal(codes[:, :200], expected)
    assert not codes[:, 200:].any()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("exponent", [EXPONENTS[0], -60, -10, 40, EXPONENTS[-1]])
def test_groups_that_no_scale_fits(exponent: int, grid: str) -> None:
    of = hard_weights(torch.float32)
    layout = Layout(200, exponent=exponent, grid=grid)
    actual = compiled_encode(of, layout, "joint")
    expected = codec.encode(of, layout, "joint")
    differs = actual.scale != expected.scale
    deepest = [group_errors(of, codec.decode(p, layout), layout) for p in (actual, expected)]
    assert torch.allclose(deepest[0][differs], deepest[1][differs], rtol=1e-6, atol=0)
    assert differs.sum() <= 4


@pytest.mark.parametrize("deviation", DEVIATION_BITS)
def test_importance_steers_as_in_the_reference(deviation: int) -> None:
    of, layout = weight(40, 200), Layout(200, 4, deviation, exponent=-10)
    ordinary = compiled_encode(of, layout, "joint")
    importance = torch.rand(200) ** 8
    importance[:64] = 0  # a group that nobody cares for takes its first candidate
    actual = compiled_encode(of, layout, "joint", importance)
    expected = codec.encode(of, layout, "joint", importance)
    assert (actual.scale != expected.scale).sum() <= 1
    assert not torch.equal(actual.scale, ordinary.scale)
    scaled = compiled_encode(of, layout, "joint", importance * 2.0**-100)
    assert torch.equal(scaled.scale, actual.scale)


@pytest.mark.parametrize("bad", [-1.0, torch.nan, torch.inf])
def test_bad_importance_is_refused(bad: float) -> None:
    importance = torch.ones(128)
    importance[77] = bad
    with pytest.raises(ValueError, match="importance: expected finite values >= 0"):
        phi.encode(weight(3, 128), importance, *settings(Layout(128)), "joint")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_that_are_not_finite_are_refused(dtype: torch.dtype, bad: float, grid: str) -> None:
    for column in (0, 63, 129):
        of = weight(3, 130, dtype=dtype)
        of[2, column] = bad
        with pytest.raises(ValueError, match="weight: holds a NaN or an infinity"):
            phi.encode(of, None, *settings(Layout(130, grid=grid)), "joint")


def test_inputs_may_be_strided_views_and_stay_as_they_are() -> None:
    layout = Layout(130, 4, 8, exponent=-10)
    wide = weight(9, 300)
    of = wide[1:8, 2:262:2]
    expected = phi.encode(of.contiguous(), None, *settings(layout), "joint")
    before = wide.clone()
    for actual, plane in zip(
        phi.encode(of, None, *settings(layout), "joint"), expected, strict=True
    ):
        assert torch.equal(actual, plane)
    assert torch.equal(wide, before)
    odd = Planes(*map(off_by_one, expected))
    actual = phi.decode(*odd, 130, *settings(layout), torch.float32)
    aligned = phi.decode(*Planes(*expected), 130, *settings(layout), torch.float32)
    assert torch.equal(actual, aligned)


def off_by_one(plane: Tensor) -> Tensor:
    """The same plane one element into a larger buffer, so that no row is aligned."""
    buffer = torch.full((plane.numel() + 2,), 0x55, dtype=plane.dtype)
    buffer[1:-1] = plane.flatten()
    return buffer[1:-1].view(plane.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("deviation", DEVIATION_BITS)
def test_embedding_decodes_the_rows_asked_for(deviation: int, dtype: torch.dtype) -> None:
    layout = Layout(200, 4, deviation, exponent=-10)
    planes = random_planes(layout, 50)
    every = codec.decode(planes, layout, dtype)
    for indices in (torch.randint(50, (3, 7)), torch.tensor(49), torch.randint(50, (8,))[::2]):
        for kind in (torch.int32, torch.int64):
            rows = phi.embedding(indices.to(kind), *planes, 200, *settings(layout), dtype)
            assert torch.equal(rows, every[indices])
