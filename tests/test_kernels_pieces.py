"""Exact bf16 weights of 4 + 4 bits, which AVX-512 decodes 64 at a time: every scale, any codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phiquant import codec, ops
from phiquant.codec import Layout, Planes, remainder
from phiquant.codec.decode import join_codes
from phiquant.codec.packing import pack
from phiquant.codec.ranks import join_sign
from phiquant.codec.scales import read_words
from tests.test_kernels import settings
from tests.test_kernels_exact import compiled_decode, compiled_exact

phi = torch.ops.phiquant
pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")
EVERY_SIZE = pytest.mark.parametrize("size", codec.GROUP_SIZES)
# Lowest and highest code. Sub-cells at zero have 14 bits: four are more than eight bytes hold.
CODES = {"any": (0, 256), "near zero": (115, 125), "at zero": (119, 121), "outermost": (250, 256)}
# Exponents of words, beside the layout's: the second has scales on both sides of what tables cover.
EXPONENTS = {
    "usual": (8, 20, -10),
    "small": (1, 31, -52),
    "large": (1, 31, 8),
    "tiny": (1, 9, -112),
}


def any_planes(layout: Layout, rows: int, codes: str, exponents: str) -> tuple[Planes, Tensor]:
    """Random codes under random words, and weights that are anywhere in their sub-cells."""
    generator = torch.Generator().manual_seed(layout.columns)

    def random(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    lowest, highest, _ = EXPONENTS[exponents]
    words = random(0, 1 << 10, rows, layout.groups) | random(0, 2, rows, layout.groups) << 15
    words |= random(lowest, highest, rows, layout.groups) << 10
    code = random(*CODES[codes], rows, layout.groups * layout.group_size)
    planes = Planes(pack(code >> 4, 4), pack(code & 15, 4), None, words.to(torch.int16))
    scale, bend = (part.unsqueeze(-1) for part in read_words(planes.scale, layout))
    grouped = join_codes(planes, layout).unflatten(-1, (layout.groups, layout.group_size))
    cells = remainder.subcells(grouped, scale, bend, layout, torch.bfloat16)
    cells = remainder.of_rows(cells, layout.columns)
    share = torch.rand(cells.count.shape, generator=generator, dtype=torch.float64)
    rest = (cells.count * share).long()
    of = join_sign(cells.negative, cells.first + rest, torch.bfloat16)
    exact, astray = remainder.encode(of, cells, planes)
    assert not astray.any()
    return exact, of


def check(layout: Layout, planes: Planes, of: Tensor) -> None:
    assert torch.equal(compiled_decode(planes, layout).view(torch.int16), of.view(torch.int16))
    for dtype in (torch.float32, torch.float16):
        largest = torch.finfo(dtype).max
        expected = of.float().clamp(-largest, largest).to(dtype)
        assert torch.equal(compiled_decode(planes, layout, dtype), expected)


@EVERY_SIZE
@pytest.mark.parametrize("exponents", EXPONENTS)
@pytest.mark.parametrize("codes", CODES)
def test_any_codes_under_any_words(codes: str, exponents: str, size: int) -> None:
    layout = Layout(700, 4, 4, size, "phi", EXPONENTS[exponents][2], torch.bfloat16)
    check(layout, *any_planes(layout, 6, codes, exponents))


@EVERY_SIZE
def test_every_bend_and_mantissa_with_every_code(size: int) -> None:
    """All 1024 tables, on both sides of zero and under both signs."""
    layout = Layout(1024 * size, 4, 4, size, "phi", -10, torch.bfloat16)
    words = torch.arange(1024).repeat(2, 1) | 16 << 10
    words[1] |= 1 << 15
    for first in range(0, 256, size):
        code = torch.arange(first, first + size).repeat(2, 1024)
        planes = Planes(pack(code >> 4, 4), pack(code & 15, 4), None, words.to(torch.int16))
        scale, bend = (part.unsqueeze(-1) for part in read_words(planes.scale, layout))
        grouped = code.unflatten(-1, (1024, size))
        cells = remainder.subcells(grouped, scale, bend, layout, torch.bfloat16)
        cells = remainder.of_rows(cells, layout.columns)
        for rest in (torch.zeros_like(cells.count), cells.count - 1):
            of = join_sign(cells.negative, cells.first + rest, torch.bfloat16)
            exact = remainder.encode(of, cells, planes)[0]
            assert torch.equal(
                compiled_decode(exact, layout).view(torch.int16), of.view(torch.int16)
            )


@EVERY_SIZE
def test_every_number_of_columns(size: int) -> None:
    for columns in (*range(1, 140), *range(140, 701, 7)):
        of = torch.randn(2, columns, generator=torch.Generator().manual_seed(columns)) * 0.05
        of = of.bfloat16()
        layout = Layout(columns, 4, 4, size, "phi", -10, torch.bfloat16)
        planes = compiled_exact(of, layout)
        for dtype in (torch.bfloat16, torch.float32):
            assert torch.equal(compiled_decode(planes, layout, dtype), of.to(dtype))


@EVERY_SIZE
def test_heavy_tails_and_exceptions_come_back(size: int) -> None:
    """Most weights are near zero beside a few large ones, and some no sub-cell holds."""
    torch.manual_seed(0)
    of = (torch.randn(40, 1100).double() ** 9 * 1e-4).bfloat16()
    of[3, ::50], of[4, 5::64], of[5, 1::9] = torch.inf, torch.nan, -torch.inf
    layout = Layout(1100, 4, 4, size, "phi", -10, torch.bfloat16)
    again = compiled_decode(compiled_exact(of, layout), layout)
    assert torch.equal(again.view(torch.int16), of.view(torch.int16))


@EVERY_SIZE
@pytest.mark.parametrize("exponents", EXPONENTS)
@pytest.mark.parametrize("codes", CODES)
def test_remainders_are_the_references(codes: str, exponents: str, size: int) -> None:
    """Also of weights that are astray: of the other sign, beside the sub-cell, or no number."""
    layout = Layout(700, 4, 4, size, "phi", EXPONENTS[exponents][2], torch.bfloat16)
    planes, of = any_planes(layout, 6, codes, exponents)
    torch.manual_seed(0)
    bits, places = of.view(torch.int16), torch.randperm(of.numel())[:300]
    change = torch.randint(1, 1 << 16, (100,)).to(torch.int16)
    bits.view(-1)[places[:100]] ^= change
    bits.view(-1)[places[100:200]] += torch.tensor([1, -1], dtype=torch.int16).repeat(50)
    bits.view(-1)[places[200:]] ^= -(1 << 15)
    lossy = Planes(*planes[:4])
    actual = Planes(*lossy[:4], *phi.encode_remainder(of, *lossy[:4], *settings(layout)))
    expected = codec.encode_remainder(of, lossy, layout)
    for name, mine, theirs in zip(Planes._fields, actual, expected, strict=True):
        assert (mine is None and theirs is None) or torch.equal(mine, theirs), name
    again = compiled_decode(actual, layout)
    assert torch.equal(again.view(torch.int16), bits)


def outcome(decode: object, *arguments: object) -> str | list[int]:
    """The weights' bits, or what is wrong with them."""
    try:
        return decode(*arguments).view(torch.int16).tolist()  # type: ignore[operator]
    except ValueError as error:
        return str(error)


@EVERY_SIZE
@pytest.mark.parametrize("codes", CODES)
def test_damage_is_judged_as_the_reference_does(codes: str, size: int) -> None:
    layout = Layout(700, 4, 4, size, "phi", -10, torch.bfloat16)
    planes, _ = any_planes(layout, 3, codes, "usual")
    assert planes.remainder is not None
    generator, found = torch.Generator().manual_seed(0), set()
    for _ in range(30):
        place = int(torch.randint(planes.remainder.numel() - 8, (1,), generator=generator))
        payload = planes.remainder.clone()
        payload[place] ^= int(torch.randint(1, 256, (1,), generator=generator))
        damaged = planes._replace(remainder=payload)
        expected = outcome(codec.decode, damaged, layout, torch.bfloat16)
        assert outcome(compiled_decode, damaged, layout) == expected
        found.add(type(expected))
    assert found == {str, list}
