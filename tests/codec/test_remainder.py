"""Remainders: which floats share a sub-cell, how wide their numbers are, and where they lie."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from phiquant import codec
from phiquant.codec import DTYPES, Layout, cells, remainder
from phiquant.codec.layout import BLOCK, BLOCKS_PER_START, PADDING
from phiquant.codec.ranks import split_sign
from phiquant.codec.remainder import Subcells
from tests.codec.support import exact, floats, heavy_tailed, join, normal

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
WORDS = [(0.0625, 0), (-0.0078125, 3), (1.9921875, 7), (-3.0e-7, 5)]


def sub_cells_of(weight: Tensor, planes: codec.Planes, layout: Layout) -> Subcells:
    scale, bend = codec.read_words(planes.scale, layout)
    codes = join(planes, layout).unflatten(-1, (layout.groups, layout.group_size))
    found = remainder.subcells(codes, scale.unsqueeze(-1), bend.unsqueeze(-1), layout, weight.dtype)
    return remainder.of_rows(found, layout.columns)


class TestSubcells:
    """Against a count of the floats that the search for cells puts into each."""

    @pytest.mark.parametrize(("scale", "bend"), WORDS, ids=str)
    @pytest.mark.parametrize(
        ("grid", "index", "deviation"),
        [("phi", 4, 4), ("phi", 2, 2), ("phi", 6, 8), ("golden", 5, 4), ("golden", 3, 2)],
    )
    @HALVES
    def test_hold_the_floats_that_are_found_there(
        self, dtype: torch.dtype, grid: str, index: int, deviation: int, scale: float, bend: int
    ) -> None:
        layout = Layout(64, index, deviation, grid=grid, stored_dtype=dtype)
        where = torch.tensor([[scale]]), torch.tensor([[bend if grid == "phi" else 0]])
        weight = self.covered(dtype, layout, *where)
        codes = cells.find(weight.float(), *where, layout)[0]
        negative, ranks = split_sign(weight[0])
        everyone = torch.arange(1 << index + deviation)
        found = remainder.subcells(everyone.unsqueeze(0), *where, layout, dtype)
        held = torch.bincount(codes, minlength=everyone.numel())
        some = held > 0
        assert some.sum() > 4
        assert torch.equal(found.count[0][some], held[some])
        assert torch.equal(found.negative[0][codes], negative)
        lowest = torch.full_like(everyone, 1 << 40).scatter_reduce(0, codes, ranks, "amin")
        assert torch.equal(found.first[0][some], lowest[some])
        highest = torch.zeros_like(everyone).scatter_reduce(0, codes, ranks, "amax")
        assert torch.equal((highest - lowest + 1)[some], held[some])

    def covered(self, dtype: torch.dtype, layout: Layout, scale: Tensor, bend: Tensor) -> Tensor:
        """``[1, n]``: every finite float from one end of the scaled grid to the other."""
        every = floats(torch.arange(1 << 16), dtype)
        every = every[every.isfinite()]
        ends = torch.tensor([[0, 1 << layout.index_bits + layout.deviation_bits]])
        low, high = (cells.edges(ends, bend, layout, layout.deviation_bits) * scale)[0].sort()[0]
        return every[(low <= every.float()) & (every.float() <= high)].unsqueeze(0)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_widths_are_those_of_the_largest_remainder(self, dtype: torch.dtype) -> None:
        weight = heavy_tailed(8, 640).to(dtype)
        found = sub_cells_of(weight, *exact(weight))
        for count, width in set(zip(*(t.flatten().tolist() for t in found[2:]), strict=True)):
            assert width == (count - 1).bit_length()

    def test_bit_length(self) -> None:
        numbers = [0, 1, 2, 3, 4, 255, 256, 2**31 - 1, 2**31, 2**53 - 1]
        lengths = remainder.bit_length(torch.tensor(numbers))
        assert lengths.tolist() == [n.bit_length() for n in numbers]


class TestStream:
    """The bytes, against a reader that takes one bit at a time from Python integers."""

    @pytest.fixture(params=[(3, 1100), (1, 1), (2, 33 * BLOCK + 5)], ids=str)
    def weight(self, request: pytest.FixtureRequest) -> Tensor:
        return heavy_tailed(*request.param).bfloat16()

    @pytest.fixture
    def stored(self, weight: Tensor) -> tuple[codec.Planes, Layout]:
        return exact(weight, grid="golden")

    def test_is_remainder_after_remainder(
        self, weight: Tensor, stored: tuple[codec.Planes, Layout]
    ) -> None:
        planes, layout = stored
        found = sub_cells_of(weight, *stored)
        ranks = split_sign(weight)[1] - found.first
        payload, begin = bytes(planes.remainder.tolist()), 0
        for row in range(weight.shape[0]):
            for block in range(layout.blocks):
                part = slice(block * BLOCK, (block + 1) * BLOCK)
                number, place = 0, 0
                for rank, width in zip(
                    ranks[row, part].tolist(), found.width[row, part].tolist(), strict=True
                ):
                    number |= rank << place
                    place += width
                size = math.ceil(place / 8)
                assert payload[begin : begin + size] == number.to_bytes(size, "little")
                begin += size
        assert payload[begin:] == bytes(PADDING)

    def test_starts_and_offsets_say_where_blocks_begin(
        self, weight: Tensor, stored: tuple[codec.Planes, Layout]
    ) -> None:
        planes, layout = stored
        width = sub_cells_of(weight, *stored).width
        sizes = [
            math.ceil(sum(row[b * BLOCK : (b + 1) * BLOCK]) / 8)
            for row in width.tolist()
            for b in range(layout.blocks)
        ]
        begins = [sum(sizes[:block]) for block in range(len(sizes))]
        offsets = [word & 0xFFFF for word in planes.offsets.flatten().tolist()]
        starts = planes.starts.tolist()
        assert [starts[n // BLOCKS_PER_START] + at for n, at in enumerate(offsets)] == begins
        assert starts == begins[::BLOCKS_PER_START]
        assert remainder.begins_of(planes).flatten().tolist() == begins

    def test_offsets_above_a_signed_word(self) -> None:
        """31 blocks of fp32 weights of another magnitude take more than 2^15 bytes."""
        weight = normal(1, 32 * BLOCK)
        weight[:, ::64] = 1e30
        planes, layout = exact(weight, grid="golden")
        assert planes.offsets.min() < 0
        assert torch.equal(codec.decode(planes, layout), weight)


class TestSizes:
    @pytest.mark.parametrize(
        ("arguments", "bits"),
        [({}, 3.0), ({"deviation_bits": 8}, 0.24), ({"grid": "golden"}, 3.1)],
        ids=str,
    )
    def test_bits_a_normal_weight(self, arguments: dict[str, Any], bits: float) -> None:
        planes, _ = exact((normal(16, 2048) * 0.02).bfloat16(), **arguments)
        stored = (planes.remainder, planes.offsets, planes.starts)
        assert 8 * sum(plane.nbytes for plane in stored) / (16 * 2048) == pytest.approx(
            bits, rel=0.05
        )

    def test_a_float_of_few_mantissa_bits_in_many_sub_cells_takes_no_bit(self) -> None:
        """One float at most in a sub-cell: its width is 0, and the blocks are empty."""
        weight = floats(torch.arange(0x3F80, 0x3F90).repeat(4).unsqueeze(0), torch.bfloat16)
        planes, layout = exact(weight, index_bits=6, deviation_bits=8)
        assert planes.remainder.tolist() == [0] * PADDING
        assert torch.equal(codec.decode(planes, layout, torch.bfloat16), weight)
