"""Packing: the order of the bits, and the way back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phiquant.codec import pack, unpack

every_width = pytest.mark.parametrize("bits", range(1, 9), ids="{}bits".format)


@st.composite
def packable(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A width, and a whole number of bytes of codes that fit it."""
    bits = draw(st.integers(1, 8))
    count = 8 * draw(st.integers(1, 9))
    codes = st.integers(0, 2**bits - 1)
    return bits, draw(st.lists(codes, min_size=count, max_size=count))


@given(packable())
def test_round_trip(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    assert unpack(pack(torch.tensor(codes), bits), bits).tolist() == codes


@given(packable())
def test_a_row_is_one_little_endian_integer(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    integer = sum(code << bits * place for place, code in enumerate(codes))
    plane = pack(torch.tensor(codes), bits)
    assert bytes(plane.tolist()) == integer.to_bytes(len(codes) * bits // 8, "little")


@every_width
def test_all_codes_of_a_width(bits: int) -> None:
    codes = torch.arange(2**bits).repeat(8)
    plane = pack(codes, bits)
    assert plane.dtype == torch.uint8
    assert plane.shape == (2**bits * bits,)
    assert torch.equal(unpack(plane, bits), codes)


@every_width
def test_leading_dimensions_are_kept(bits: int) -> None:
    codes = torch.randint(2**bits, (3, 2, 16), generator=torch.Generator().manual_seed(bits))
    plane = pack(codes, bits)
    assert plane.shape == (3, 2, 2 * bits)
    assert torch.equal(plane[1, 0], pack(codes[1, 0], bits))
    assert torch.equal(unpack(plane, bits), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "octets"),
    [
        (1, [1, 0, 0, 0, 0, 0, 0, 0], [0x01]),
        (2, [3, 0, 1, 2], [0b10_01_00_11]),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], [0b11_010_001, 0b0_101_100_0, 0b000_111_11]),
        (4, [1, 2, 3, 15], [0x21, 0xF3]),
        (5, [31, 0, 0, 0, 0, 0, 0, 1], [0x1F, 0, 0, 0, 0x08]),
        (6, [0b100001, 0b000010, 0, 0], [0b10_100001, 0, 0]),
        (8, [200, 7], [200, 7]),
    ],
    ids=lambda value: f"{value}bits" if isinstance(value, int) else "",
)
def test_least_significant_bit_first(bits: int, codes: list[int], octets: list[int]) -> None:
    assert pack(torch.tensor(codes), bits).tolist() == octets


def test_no_rows() -> None:
    plane = pack(torch.empty(0, 64, dtype=torch.int64), 5)
    assert plane.shape == (0, 40)
    assert unpack(plane, 5).shape == (0, 64)
