"""Exceptions: bits that no grid holds, through every dtype, at every tier."""

from __future__ import annotations

import itertools
import math
import struct
import warnings

import pytest
import torch
from torch import Tensor

from phiquant import codec
from phiquant.codec import DTYPES, Layout, Planes, exceptions
from tests.codec.support import FIELDS, bits, exact, floats, normal, specials

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
PAIRS = pytest.mark.parametrize(
    ("stored", "read"), list(itertools.product(DTYPES, DTYPES)), ids=lambda d: str(d)[6:]
)


def every_special_pattern(dtype: torch.dtype) -> Tensor:
    """Infinities and NaN of both signs: all of the 16-bit ones, 4,000 of fp32's."""
    exponent, mantissa = FIELDS[dtype]
    payloads = torch.arange(1 << min(mantissa, 10)) << max(mantissa - 10, 0)
    if mantissa > 10:
        generator = torch.Generator().manual_seed(0)
        payloads = torch.cat([payloads, torch.randint(1 << mantissa, (1000,), generator=generator)])
    positive = payloads | ((1 << exponent) - 1 << mantissa)
    return floats(torch.cat([positive, positive + (1 << exponent + mantissa)]), dtype)


class TestBits:
    @EVERY_DTYPE
    def test_come_back_in_their_own_dtype(self, dtype: torch.dtype) -> None:
        every = torch.arange(1 << 16)
        if dtype == torch.float32:
            every = torch.randint(1 << 32, (1 << 16,))
        weight = torch.cat([floats(every, dtype), every_special_pattern(dtype), specials(dtype)])
        wide = exceptions.widened_bits(weight)
        assert ((wide >= 0) & (wide < 1 << 32)).all()
        assert torch.equal(bits(exceptions.from_widened_bits(wide, dtype)), bits(weight))

    @EVERY_DTYPE
    def test_are_those_of_the_fp32_number(self, dtype: torch.dtype) -> None:
        weight = specials(dtype)
        weight = weight[~weight.isnan()]
        wide = exceptions.widened_bits(weight).tolist()
        expected = [struct.unpack("<I", struct.pack("<f", w))[0] for w in weight.tolist()]
        assert wide == expected

    @PAIRS
    def test_special_ones_keep_sign_kind_and_the_high_payload(
        self, stored: torch.dtype, read: torch.dtype
    ) -> None:
        weight = every_special_pattern(stored)
        got = exceptions.from_widened_bits(exceptions.widened_bits(weight), read)
        assert torch.equal(got.isnan(), weight.isnan())
        assert torch.equal(got.isinf(), weight.isinf())
        assert torch.equal(bits(got) < 0, bits(weight) < 0)
        (_, from_bits), (_, to_bits) = FIELDS[stored], FIELDS[read]
        for before, after in zip(bits(weight).tolist(), bits(got).tolist(), strict=True):
            payload = before & (1 << from_bits) - 1
            kept = payload << to_bits >> from_bits
            if payload and not kept:
                kept = 1 << to_bits - 1  # the quiet bit, or the NaN would become an infinity
            assert after & (1 << to_bits) - 1 == kept

    @PAIRS
    def test_finite_ones_round_once_and_saturate(
        self, stored: torch.dtype, read: torch.dtype
    ) -> None:
        largest = torch.finfo(stored).max
        values = torch.tensor([1.0, -1.00390625, 65519.0, 65520.0, -largest, largest, 1e-7])
        weight = values.clamp(-largest, largest).to(stored)
        got = exceptions.from_widened_bits(exceptions.widened_bits(weight), read)
        limit = torch.finfo(read).max
        assert torch.equal(got, weight.float().clamp(-limit, limit).to(read))


class TestDecode:
    @PAIRS
    def test_every_tier_has_them(self, stored: torch.dtype, read: torch.dtype) -> None:
        weight = normal(3, 100, dtype=stored)
        weight[0, 5], weight[2, 99], weight[1, 64] = math.inf, -math.inf, math.nan
        weight[2, 0] = every_special_pattern(stored)[77]
        planes, layout = exact(weight, deviation_bits=8)
        expected = exceptions.from_widened_bits(exceptions.widened_bits(weight), read)
        special = ~weight.isfinite()
        for tier, cut in tiers(planes, layout):
            decoded = codec.decode(cut, tier, read)
            assert torch.equal(bits(decoded)[special], bits(expected)[special])
            assert decoded[~special].isfinite().all()

    def test_what_no_scale_covers_is_one_at_the_lossy_tiers_too(self) -> None:
        largest = torch.finfo(torch.float32).max
        weight = normal(1, 64)
        weight[0, 3], weight[0, 7] = largest, -largest
        planes, layout = exact(weight)
        assert 1 <= len(planes.exceptions) <= 2
        for tier, cut in tiers(planes, layout):
            decoded = codec.decode(cut, tier)
            places = planes.exceptions[:, 0]
            assert torch.equal(decoded[0, places], weight[0, places])

    def test_none_and_no_exceptions_are_the_same(self) -> None:
        weight = normal(2, 70, dtype=torch.float16)
        planes, layout = exact(weight)
        assert planes.exceptions.shape == (0, 2)
        for some in (planes, planes._replace(exceptions=None)):
            layout.check(some)
            assert torch.equal(codec.decode(some, layout, torch.float16), weight)

    def test_warns_of_nothing(self) -> None:
        weight = torch.full((2, 64), math.nan)
        always = torch.is_warn_always_enabled()
        torch.set_warn_always(True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                planes, layout = exact(weight)
                codec.decode(planes, layout)
        finally:
            torch.set_warn_always(always)


def tiers(planes: Planes, layout: Layout) -> list[tuple[Layout, Planes]]:
    """Every depth that these planes of an 8-bit or 4-bit deviation can be read at."""
    lossy = planes._replace(remainder=None, offsets=None, starts=None)
    depths = [(0, lossy._replace(deviation=None, deviation_low=None))]
    depths.append((4, lossy._replace(deviation_low=None)))
    if layout.deviation_bits == 8:
        depths.append((8, lossy))
    return [
        (Layout(layout.columns, 4, depth, layout.group_size, exponent=layout.exponent), cut)
        for depth, cut in depths
    ] + [(layout, planes)]


class TestPut:
    one = torch.tensor([[7, 0x40000000], [12, 0xC0400000]])

    def test_places_are_those_of_the_flat_weight(self) -> None:
        got = exceptions.put(torch.zeros(2, 2, 5), self.one)
        assert got.flatten().nonzero().flatten().tolist() == [7, 12]
        assert (got[0, 1, 2].item(), got[1, 0, 2].item()) == (2.0, -3.0)

    def test_rows_of_the_stored_weight(self) -> None:
        got = exceptions.put(torch.zeros(3, 5), self.one, torch.tensor([2, 0, 1]))
        assert got.nonzero().tolist() == [[0, 2], [2, 2]]
        repeated = exceptions.put(torch.zeros(2, 2, 5), self.one, torch.tensor([[1, 1], [3, 2]]))
        assert repeated.nonzero().tolist() == [[0, 0, 2], [0, 1, 2], [1, 1, 2]]

    def test_one_past_the_end_is_none(self) -> None:
        past = torch.tensor([[3, 0x40000000], [10, 0x40000000], [10, 0]])
        assert exceptions.put(torch.zeros(2, 5), past).count_nonzero() == 1

    def test_the_weight_it_is_given_stays_as_it_is(self) -> None:
        weight = torch.zeros(2, 10)
        exceptions.put(weight, self.one)
        assert not weight.any()

    @pytest.mark.parametrize(
        "bad",
        [
            [[-1, 0]],
            [[5, 0], [4, 0]],
            [[5, -1]],
            [[5, 1 << 32]],
            [[1 << 62, 0], [-(1 << 62), 0]],
            [[0, 1 << 62]],
        ],
        ids=str,
    )
    def test_corrupt_ones_are_an_error(self, bad: list[list[int]]) -> None:
        planes, layout = exact(normal(2, 70, dtype=torch.bfloat16))
        planes = planes._replace(exceptions=torch.tensor(bad))
        for tier, cut in tiers(planes, layout):
            with pytest.raises(ValueError, match="exceptions: expected ascending places"):
                codec.decode(cut, tier)

    @pytest.mark.parametrize("place", [140, 141, 1 << 40, (1 << 63) - 1])
    def test_places_past_the_end_write_nothing(self, place: int) -> None:
        weight = normal(2, 70, dtype=torch.bfloat16)
        planes, layout = exact(weight)
        planes = planes._replace(exceptions=torch.tensor([[place, 0]]))
        assert torch.equal(codec.decode(planes, layout, torch.bfloat16), weight)
