"""Scale words: sixteen bits that hold a signed scale and a bend."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phiquant.codec import Layout, exponent_for, read_words
from phiquant.codec.scales import LARGEST, SMALLEST, USUAL_EXPONENT, smallest_words
from phiquant.grid import INDEX_BITS

MAGNITUDES = torch.arange(0x0400, 0x7C00, 8)


def words(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32).to(torch.int16)


class TestReading:
    @pytest.mark.parametrize(
        ("word", "scale", "bend"),
        [
            (0x3C00, 1.0, 0),
            (0x3C07, 1.0, 7),
            (0xBC03, -1.0, 3),
            (0x3C08, 1 + 2**-7, 0),
            (0x0400, 2.0**-14, 0),
            (0x7BFF, 65280.0, 7),
            (0xFBFF, -65280.0, 7),
        ],
        ids=lambda value: f"{value:#06x}" if isinstance(value, int) and value > 7 else None,
    )
    def test_sign_scale_and_bend(self, word: int, scale: float, bend: int) -> None:
        assert [t.item() for t in read_words(words(word), Layout(64))] == [scale, bend]

    @pytest.mark.parametrize("exponent", [-112, -3, 0, 112])
    def test_every_valid_word_is_an_exact_multiple_of_two_to_the_exponent(
        self, exponent: int
    ) -> None:
        bits = torch.cat([MAGNITUDES + bend for bend in range(8)])
        bits = torch.cat([bits, bits | 0x8000])
        scale, bend = read_words(bits.to(torch.int16), Layout(64, exponent=exponent))
        assert scale.dtype == torch.float32
        fraction, exponent_field = bits >> 3 & 127, bits >> 10 & 31
        size = torch.ldexp(1 + fraction.double() / 128, exponent_field - 15 + exponent)
        assert torch.equal(scale.double(), torch.where(bits >= 0x8000, -size, size))
        assert torch.equal(bend, bits & 7)

    @pytest.mark.parametrize(
        "word", [0x0000, 0x8000, 0x0007, 0x03FF, 0x83F8, 0x7C00, 0xFC00, 0x7E00, 0xFFFF], ids=hex
    )
    def test_zero_denormal_infinite_and_nan_words_are_refused(self, word: int) -> None:
        with pytest.raises(ValueError, match="scale: a word is not a normal fp16 number"):
            read_words(words(0x3C00, word), Layout(64))

    @pytest.mark.parametrize("bend", range(1, 8))
    def test_the_golden_grid_has_one_bend(self, bend: int) -> None:
        assert read_words(words(0x3C00), Layout(64, grid="golden"))[1].item() == 0
        with pytest.raises(ValueError, match=r"bend below 1 \(grid 'golden'\)"):
            read_words(words(0x3C00 + bend), Layout(64, grid="golden"))


class TestSmallest:
    @given(
        above=st.floats(0, 2.0**14, width=32),
        below=st.floats(0, 2.0**14, width=32),
        bend=st.integers(0, 7),
        index_bits=st.sampled_from(INDEX_BITS),
    )
    def test_covers_and_the_next_smaller_word_does_not(
        self, above: float, below: float, bend: int, index_bits: int
    ) -> None:
        layout = Layout(64, index_bits=index_bits)
        magnitude, scale = smallest_words(
            torch.tensor([above]), torch.tensor([below]), bend, layout
        )
        ends = torch.tensor([layout.curve.half + 0.125, layout.curve.half - 0.5])
        top, bottom = layout.curve.value(ends, torch.tensor(bend))
        assert (scale * top).item() >= above
        assert (scale * bottom).item() >= below
        assert magnitude.item() % 8 == 0
        assert torch.equal(read_words(magnitude.to(torch.int16), layout)[0], scale)
        if scale.item() > SMALLEST:
            smaller = read_words((magnitude - 8).to(torch.int16), layout)[0]
            # The quotient that finds the word is rounded, so a tie may go one word up.
            slack = 1 - 2.0**-22
            assert (smaller * top * slack).item() < above or (
                smaller * bottom * slack
            ).item() < below

    def test_nothing_to_cover_takes_the_smallest_word(self) -> None:
        magnitude, scale = smallest_words(torch.zeros(2), torch.zeros(2), 3, Layout(64, exponent=5))
        assert magnitude.tolist() == [0x0400] * 2
        assert scale.tolist() == [SMALLEST * 32] * 2

    def test_what_no_word_covers_takes_the_largest(self) -> None:
        huge = torch.tensor([3.4e38])
        magnitude, scale = smallest_words(huge, huge, 7, Layout(64, index_bits=2))
        assert magnitude.tolist() == [0x7BF8]
        assert scale.tolist() == [LARGEST]


class TestExponent:
    @given(st.floats(2.0**-90, 2.0**126, width=32))
    def test_every_bend_finds_a_word_and_eleven_smaller_binades_remain(self, absmax: float) -> None:
        ends = torch.tensor([absmax])
        for index_bits in INDEX_BITS:
            layout = Layout(64, index_bits=index_bits, exponent=exponent_for(absmax))
            for bend in range(8):
                magnitude, _ = smallest_words(ends, ends, bend, layout)
                assert 0x0400 + (11 << 10) <= magnitude.item() < 0x7BF8

    @pytest.mark.parametrize("absmax", [0.0, 2.0**-12, 0.02, 1.0, 15.99], ids=repr)
    def test_usual_tensors_share_one(self, absmax: float) -> None:
        assert exponent_for(absmax) == USUAL_EXPONENT

    @pytest.mark.parametrize("absmax", [16.0, 65504.0, 1e-20], ids=repr)
    def test_others_follow_their_own_power_of_two(self, absmax: float) -> None:
        assert exponent_for(math.ldexp(absmax, 3)) == exponent_for(absmax) + 3

    @pytest.mark.parametrize(
        ("absmax", "exponent"),
        [(2.0**-149, -112), (2.0**-126, -112), (3.4028234663852886e38, 112)],
        ids=["denormal", "smallest normal", "maximum"],
    )
    def test_stays_in_range(self, absmax: float, exponent: int) -> None:
        assert exponent_for(absmax) == exponent
