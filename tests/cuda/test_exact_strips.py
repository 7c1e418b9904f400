"""Exact bf16 weights by a table of edges: every sub-cell, odd shapes, corrupt planes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from phiquant import codec
from phiquant.codec import Layout, Planes, remainder
from phiquant.codec.encode import split_codes
from phiquant.codec.ranks import join_sign
from phiquant.codec.scales import read_words
from tests.cuda.support import (
    ON_A_GPU,
    compiled_exact,
    difficult,
    misaligned,
    on_gpu,
    phi,
    same,
    settings,
    surrounded,
)
from tests.support import weight

pytestmark = ON_A_GPU
BRAIN = torch.bfloat16
ROWS = 67  # more than are decoded without a table


def decoded(planes: Planes, layout: Layout) -> Tensor:
    return phi.decode(*planes, layout.columns, *settings(layout), BRAIN)


def linear(x: Tensor, planes: Planes, bias: Tensor | None, layout: Layout) -> Tensor:
    return phi.linear(x, *planes, bias, layout.columns, *settings(layout))


def layout_of(columns: int, size: int = 64, exponent: int = -10) -> Layout:
    return Layout(columns, 4, 4, size, "phi", exponent, BRAIN)


def every_sub_cell(field: int, exponent: int) -> tuple[Planes, Layout, list[Tensor]]:
    """All codes with all bends, mantissas and signs, a word a row, and of each sub-cell the first
    float, the last one, and one of them at random.
    """
    layout = layout_of(256, 64, exponent)
    low = torch.arange(1 << 11)
    words = low & 0x3FF | field << 10 | (low & 0x400) << 5
    words = words.to(torch.int16).unsqueeze(-1).expand(-1, layout.groups).contiguous()
    codes = torch.arange(256).expand(len(words), -1).contiguous()
    planes = split_codes(codes, layout)._replace(scale=words)
    scale, bend = (part.unsqueeze(-1) for part in read_words(words, layout))
    grouped = codes.unflatten(-1, (layout.groups, -1))
    within = remainder.of_rows(remainder.subcells(grouped, scale, bend, layout, BRAIN), 256)
    chosen = torch.rand(within.count.shape, generator=torch.Generator().manual_seed(0))
    ranks = (0 * chosen, within.count - 1, (chosen * within.count).floor())
    weights = [join_sign(within.negative, within.first + rank.long(), BRAIN) for rank in ranks]
    return planes, layout, weights


@pytest.mark.parametrize(("field", "exponent"), [(15, -10), (1, -100), (30, 110), (7, 3)], ids=str)
def test_every_sub_cell(field: int, exponent: int) -> None:
    planes, layout, weights = every_sub_cell(field, exponent)
    for of in weights:
        whole = codec.encode_remainder(of, planes, layout)
        assert whole.exceptions is None or whole.exceptions.numel() == 0
        assert same(decoded(on_gpu(whole), layout), of)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("columns", [1, 64, 72, 100, 129, 200, 512, 600, 1100, 4136])
def test_shapes(columns: int, size: int) -> None:
    of = weight(ROWS, columns, dtype=BRAIN)
    layout = layout_of(columns, size)
    planes = compiled_exact(of, layout)
    assert same(decoded(on_gpu(planes), layout), of)
    assert same(decoded(misaligned(planes), layout), of)
    odd = Planes(*(None if p is None else surrounded(p, 16 // p.element_size())[0] for p in planes))
    payload = surrounded(planes.remainder, 3)[0]
    assert same(decoded(odd._replace(remainder=payload), layout), of)


@pytest.mark.parametrize("exponent", [-112, -101, -100, 0, 110, 111, 112])
def test_exponents_at_the_borders_of_the_table(exponent: int) -> None:
    of = weight(ROWS, 256).mul(2.0 ** max(min(exponent + 10, 120), -124)).to(BRAIN)
    layout = layout_of(256, 64, exponent)
    assert same(decoded(on_gpu(compiled_exact(of, layout)), layout), of)


def test_difficult_weights() -> None:
    of = difficult(BRAIN).repeat(8, 1)
    layout = layout_of(of.shape[1])
    assert same(decoded(on_gpu(compiled_exact(of, layout)), layout), of)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_long_remainders(share: float) -> None:
    """Zeros have 14 bits: four weights take more than a word."""
    of = weight(ROWS, 1100, dtype=BRAIN)
    of[torch.rand(of.shape, generator=torch.Generator().manual_seed(1)) < share] = 0
    layout = layout_of(1100)
    planes = on_gpu(compiled_exact(of, layout))
    assert same(decoded(planes, layout), of)
    x = torch.randn(3, 1100, dtype=BRAIN, device="cuda")
    expected = functional.linear(x.double(), of.cuda().double())
    actual = linear(x, planes, None, layout)
    torch.testing.assert_close(actual.double(), expected, rtol=2.0**-8, atol=1e-6)


def test_rows_that_are_picked_or_asked_for() -> None:
    of = weight(ROWS, 600, dtype=BRAIN)
    layout = layout_of(600)
    planes, rows = compiled_exact(of, layout), torch.randperm(ROWS)
    picked = codec.pick_rows(planes, rows, 600)
    assert same(decoded(on_gpu(picked), layout), of[rows])
    asked = torch.randint(ROWS, (3, 50))
    found = phi.embedding(asked.cuda(), *on_gpu(planes), 600, *settings(layout), BRAIN)
    assert same(found, of[asked])


def test_a_bad_word_spoils_the_rest_of_its_block() -> None:
    of = weight(ROWS, 1024, dtype=BRAIN)
    layout = layout_of(1024)
    for word in (0x0000, 0x03F8, 0x7C00, 0x7E01):
        planes = on_gpu(compiled_exact(of, layout))
        planes.scale[5, 3] = word
        weights = decoded(planes, layout).cpu()
        assert bool(weights[5, 192:512].isnan().all())
        weights[5, 192:512] = of[5, 192:512]
        assert same(weights, of)


def test_corrupt_planes_read_nothing_outside() -> None:
    of = weight(ROWS, 1024, dtype=BRAIN)
    layout = layout_of(1024)
    planes = on_gpu(compiled_exact(of, layout))
    x = torch.ones(1, 1024, dtype=BRAIN, device="cuda")
    for start in (-1, 1 << 40, (1 << 63) - 1, planes.remainder.numel() - 8):
        broken = planes._replace(starts=torch.full_like(planes.starts, start))
        assert bool(decoded(broken, layout).isnan().any())
        assert bool(linear(x, broken, None, layout).isnan().any())
    short = planes._replace(remainder=planes.remainder[:40])
    assert bool(decoded(short, layout).isnan().any())
    assert same(decoded(planes, layout), of)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 8, 9, 15, 16])
def test_products(m: int) -> None:
    for columns, rows in ((72, 19), (512, 67), (1100, 300), (4096, 1111), (8192, 67)):
        of = weight(rows, columns, dtype=BRAIN)
        layout = layout_of(columns)
        planes, bias = on_gpu(compiled_exact(of, layout)), torch.randn(rows, dtype=BRAIN).cuda()
        x = surrounded(torch.randn(m, columns, dtype=BRAIN).flatten(), 3)[0].view(m, columns)
        y = linear(x, planes, bias, layout)
        assert same(y, linear(x.clone(), planes, bias, layout))  # at an aligned address
        wide, weights = x.double(), of.cuda().double()
        expected = functional.linear(wide, weights, bias.double())
        size = functional.linear(wide.abs(), weights.abs(), bias.double().abs())
        off = (y.double() - expected).abs() - 2.0**-8 * expected.abs()
        assert bool((off <= 2.0**-20 * size).all())


@pytest.mark.parametrize("columns", [512, 1100])
def test_a_row_has_the_same_bits_in_every_company(columns: int) -> None:
    of = weight(300, columns, dtype=BRAIN)
    layout = layout_of(columns)
    planes = on_gpu(compiled_exact(of, layout))
    x = torch.randn(16, columns, dtype=BRAIN, device="cuda")
    whole = linear(x, planes, None, layout)
    for m in (1, 3, 4, 5, 8, 9):
        assert same(linear(x[:m], planes, None, layout), whole[:m])


def test_products_with_codes_that_are_aligned_to_eight_bytes() -> None:
    of = weight(ROWS, 512, dtype=BRAIN)
    layout = layout_of(512)
    planes = on_gpu(compiled_exact(of, layout))
    index, deviation = (surrounded(plane, 8)[0] for plane in planes[:2])
    odd = planes._replace(index=index, deviation=deviation)
    x = torch.randn(4, 512, dtype=BRAIN, device="cuda")
    assert same(decoded(odd, layout), of)
    actual, expected = (linear(x, both, None, layout).float() for both in (odd, planes))
    torch.testing.assert_close(actual, expected, rtol=2.0**-7, atol=1e-6)


def test_products_are_those_of_few_rows() -> None:
    """What the table does not cover is multiplied without it: nearly the same sums."""
    of = weight(ROWS, 576, dtype=BRAIN)
    x = torch.randn(4, 576, dtype=BRAIN, device="cuda")
    sums = []
    for size in (32, 64, 128):
        layout = replace(layout_of(576), group_size=size)
        sums.append(linear(x, on_gpu(compiled_exact(of, layout)), None, layout).float())
    for one in sums[1:]:
        torch.testing.assert_close(one, sums[0], rtol=2.0**-7, atol=1e-6)
