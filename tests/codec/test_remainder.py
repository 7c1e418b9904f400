"""Remainders bring back every bit of a weight, whatever it is mixed with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phiquant import codec
from phiquant.codec import Layout, Planes, remainder
from phiquant.codec import cells as cells_of
from phiquant.codec.decode import join_codes
from phiquant.codec.ranks import split_sign
from phiquant.codec.remainder import Remainder, Subcells
from tests.codec.support import heavy_tailed, layout_for, normal

INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
DTYPES = pytest.mark.parametrize("dtype", list(INTEGERS), ids=str)


def subcells(planes: Planes, layout: Layout, dtype: torch.dtype) -> Subcells:
    scale, bend = codec.read_words(planes.scale, layout)
    codes = join_codes(planes, layout).unflatten(-1, (layout.groups, layout.group_size))
    return remainder.subcells(codes, scale.unsqueeze(-1), bend.unsqueeze(-1), layout, dtype)


def encoded(weight: Tensor, **arguments: object) -> tuple[Remainder, Tensor, Subcells, Layout]:
    finite = torch.where(weight.isfinite(), weight, 0)
    layout = layout_for(finite.float(), **arguments)
    cells = subcells(codec.encode(finite, layout), layout, weight.dtype)
    return *remainder.encode(weight, cells, layout), cells, layout


def check_round_trip(weight: Tensor, **arguments: object) -> Tensor:
    """Every bit comes back but where a weight is said to be astray; returns where."""
    plane, astray, cells, layout = encoded(weight, **arguments)
    again = remainder.decode(plane, cells, layout, weight.dtype)
    integer = INTEGERS[weight.dtype]
    assert torch.equal(again.view(integer)[~astray], weight.view(integer)[~astray])
    return astray


def is_special(weight: Tensor) -> Tensor:
    """Infinities, NaN, zeros (of the sign the scale turns to -0.0), and what no scale covers."""
    return ~weight.isfinite() | (weight == 0) | (weight.float().abs() >= 2.0**127)


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"deviation_bits": 8, "group_size": 32}, {"deviation_bits": 2, "grid": "golden"}],
    ids=str,
)
def test_every_16_bit_pattern_comes_back(
    dtype: torch.dtype, order: str, arguments: dict[str, object]
) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15)
    if order == "shuffled":
        bits = bits[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))]
    weight = bits.to(torch.int16).view(dtype).view(64, 1024)
    astray = check_round_trip(weight, **arguments)
    assert not (astray & ~is_special(weight)).any()


def test_random_fp32_patterns_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (256, 1000), generator=generator)
    weight = bits.to(torch.int32).view(torch.float32)
    assert not (check_round_trip(weight) & ~is_special(weight)).any()


@DTYPES
@pytest.mark.parametrize("columns", [1, 63, 64, 512, 513, 1100])
def test_rows_of_any_length_come_back(dtype: torch.dtype, columns: int) -> None:
    weight = heavy_tailed(3, columns).to(dtype)
    assert not (check_round_trip(weight, deviation_bits=4) & ~is_special(weight)).any()


def test_widths_hold_a_sub_cells_floats_and_no_bit_more() -> None:
    weight = normal(16, 512).bfloat16()
    layout = layout_for(weight.float())
    row = codec.encode(weight, layout)
    spread = codec.Layout(64, exponent=layout.exponent)
    # All finite floats of one group's scale, by the codes they get there.
    for group in range(3):
        words = row.scale[0, group].expand((1 << 16) // 64, 1)
        floats = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
        floats = torch.where(floats.isfinite(), floats, 0).view(-1, 64)
        scale, bend = codec.read_words(words, spread)
        codes = cells_of.find(floats.float(), scale, bend, spread)
        inner = (codes > 0) & (codes < 255)
        found = remainder.subcells(codes, scale, bend, spread, torch.bfloat16)
        for code in codes[inner].unique()[::17]:
            same = codes == code
            held = split_sign(floats[same])[1].unique()
            width = found.width[same][0].item()
            assert (len(held) - 1).bit_length() == width


def test_a_normal_weight_takes_three_bits_more_than_its_lossy_planes() -> None:
    weight = (normal(16, 2048) * 0.02).bfloat16()
    plane, _, _, _ = encoded(weight)
    bits = 8 * sum(part.nbytes for part in plane) / weight.numel()
    assert 2.9 < bits < 3.2


class TestCorruptPlanes:
    @pytest.fixture
    def stored(self) -> tuple[Remainder, Subcells, Layout]:
        plane, _, cells, layout = encoded(normal(8, 1024).bfloat16())
        return plane, cells, layout

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            ("payload", lambda t: t[:-1], "payload: expected torch.uint8 of shape"),
            ("payload", lambda t: t.short(), "payload: expected torch.uint8"),
            ("offsets", lambda t: t + 1, "number 0 does not follow"),
            ("offsets", lambda t: t[:, :1], "offsets: expected torch.int16 of shape"),
            ("starts", lambda t: t + (1 << 40), "starts: number 0 does not follow"),
        ],
        ids=["too short", "another dtype", "shifted", "missing", "out of the file"],
    )
    def test_are_an_error(
        self, stored: tuple[Remainder, Subcells, Layout], part: str, change: object, message: str
    ) -> None:
        plane, cells, layout = stored
        bad = plane._replace(**{part: change(getattr(plane, part))})  # type: ignore[operator]
        with pytest.raises(ValueError, match=message):
            remainder.decode(bad, cells, layout, torch.bfloat16)

    def test_planes_of_another_encoding_are_an_error(
        self, stored: tuple[Remainder, Subcells, Layout]
    ) -> None:
        _, cells, layout = stored
        other, _, _, _ = encoded(normal(8, 1024, seed=1).bfloat16())
        with pytest.raises(ValueError, match="two different encodings"):
            remainder.decode(other, cells, layout, torch.bfloat16)
