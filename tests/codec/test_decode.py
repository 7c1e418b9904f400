"""Decoding: the fixed order of operations, the depths of reading, and the rounding to a dtype."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from phiquant import codec
from phiquant.codec import DTYPES, Layout, Planes
from phiquant.grid import BENDS, INDEX_BITS, LINES
from tests.codec.support import (
    bits,
    encoded,
    exact,
    heavy_tailed,
    index_tier,
    normal,
    with_deviation_bits,
)


def fp32(value: float) -> float:
    return ctypes.c_float(value).value


def random_planes(rows: int, layout: Layout, seed: int = 0) -> Planes:
    """Planes that no encoder wrote: random bits, random valid scale words."""
    generator = torch.Generator().manual_seed(seed)

    def octets(bits: int) -> torch.Tensor | None:
        shape = (rows, layout.row_bytes(bits))
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8) if bits else None

    shape = (rows, layout.groups)
    words = torch.randint(0x0400, 0x7C00, shape, generator=generator)
    words -= words % 8
    words += torch.randint(layout.curve.bends, shape, generator=generator)
    words |= torch.randint(2, shape, generator=generator) << 15
    return Planes(
        octets(layout.index_bits), octets(layout.high_bits), octets(layout.low_bits), words.short()
    )


@pytest.mark.parametrize("deviation_bits", [0, 2, 4, 8], ids="deviation{}".format)
@pytest.mark.parametrize("index_bits", INDEX_BITS, ids="index{}".format)
def test_decode_is_the_documented_sequence_of_roundings(
    index_bits: int, deviation_bits: int
) -> None:
    layout = Layout(40, index_bits, deviation_bits, 32, exponent=-10)
    planes = random_planes(2, layout, seed=index_bits)
    decoded = codec.decode(planes, layout)
    half = 1 << index_bits - 1
    for row in range(2):
        streams = [
            (None if plane is None else int.from_bytes(bytes(plane[row].tolist()), "little"), width)
            for plane, width in (
                (planes.index, index_bits),
                (planes.deviation, layout.high_bits),
                (planes.deviation_low, layout.low_bits),
            )
        ]
        for column in range(40):
            code = 0
            for stream, width in streams:
                if stream is not None:
                    code = code << width | stream >> column * width & (1 << width) - 1
            word = planes.scale[row, column // 32].item() & 0xFFFF
            p = (code + 0.5) / 2**deviation_bits - half + 0.5
            a, b = LINES[word & 7] / half, BENDS[word & 7] / half**3
            level = fp32(fp32(fp32(fp32(p * p) * b) + a) * p)
            size = (1 + (word >> 3 & 127) / 128) * 2.0 ** ((word >> 10 & 31) - 15 - 10)
            scale = -size if word >> 15 else size
            assert decoded[row, column].item() == fp32(level * scale)


class TestDepths:
    def test_the_index_alone(self) -> None:
        """scale * f(k), whatever deviation bits follow."""
        planes, layout = encoded(normal(3, 100), deviation_bits=8)
        scale, bend = codec.read_words(planes.scale, layout)
        k = codec.unpack(planes.index, 4).view(3, layout.groups, 64).float() - 7
        expected = layout.curve.value(k, bend.unsqueeze(-1)) * scale.unsqueeze(-1)
        assert torch.equal(index_tier(planes, layout), expected.flatten(1)[:, :100])

    def test_the_first_of_two_deviation_planes_is_a_four_bit_deviation(self) -> None:
        weight = normal(3, 100)
        planes, layout = encoded(weight, deviation_bits=8)
        shallow = with_deviation_bits(layout, 4)
        cut = planes._replace(deviation_low=None)
        step = 2.0**-4
        codes = codec.unpack(planes.index, 4) << 4 | codec.unpack(planes.deviation, 4)
        position = (codes.float() + 0.5) * step - 7.5
        scale, bend = codec.read_words(planes.scale, layout)
        level = layout.curve.value(position.view(3, -1, 64), bend.unsqueeze(-1))
        expected = (level * scale.unsqueeze(-1)).flatten(1)[:, :100]
        assert torch.equal(codec.decode(cut, shallow), expected)

    def test_every_depth_is_nearer(self) -> None:
        weight = normal(30, 192)
        planes, layout = encoded(weight, deviation_bits=8)
        cut = planes._replace(deviation_low=None)
        errors = [
            (decoded - weight).norm().item()
            for decoded in (
                index_tier(planes, layout),
                codec.decode(cut, with_deviation_bits(layout, 4)),
                codec.decode(planes, layout),
            )
        ]
        assert errors[0] > 12 * errors[1] > 144 * errors[2] > 0


class TestDtypes:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_one_rounding_of_the_fp32_value(self, dtype: torch.dtype) -> None:
        layout = Layout(128, exponent=-10)
        planes = random_planes(8, layout)
        decoded = codec.decode(planes, layout, dtype)
        assert decoded.dtype == dtype
        assert torch.equal(decoded, codec.decode(planes, layout).to(dtype))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_saturates_at_the_largest_finite_value(self, dtype: torch.dtype) -> None:
        layout = Layout(128, exponent=112)
        planes = random_planes(8, layout)._replace(scale=torch.full((8, 2), 0x7BF8).short())
        decoded = codec.decode(planes, layout, dtype)
        largest = torch.finfo(dtype).max
        assert decoded.isfinite().all()
        assert decoded.max().item() == largest
        if dtype == torch.float16:
            assert decoded.min().item() == -largest


class TestExact:
    """Exceptions are in test_exceptions.py, corrupt planes in test_corruption.py."""

    @pytest.mark.parametrize(
        ("stored", "read"), list(itertools.product(DTYPES, DTYPES)), ids=lambda d: str(d)[6:]
    )
    def test_another_dtype_is_one_rounding_of_the_original(
        self, stored: torch.dtype, read: torch.dtype
    ) -> None:
        weight = heavy_tailed(4, 600).to(stored)
        weight[0, :3] = torch.tensor([0.0, -0.0, 65519.0])
        weight[1, :2] = torch.tensor([torch.finfo(stored).max, torch.finfo(stored).tiny])
        weight[2, :2] = torch.tensor([-torch.finfo(stored).max, 1e-7])
        planes, layout = exact(weight)
        largest = torch.finfo(read).max
        expected = weight.float().clamp(-largest, largest).to(read)
        assert torch.equal(bits(codec.decode(planes, layout, read)), bits(expected))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_lossy_tiers_are_those_of_the_lossy_planes(self, dtype: torch.dtype) -> None:
        weight = normal(3, 600, dtype=dtype)
        planes, layout = exact(weight, deviation_bits=8)
        again = codec.encode_remainder(weight, Planes(*planes[:4]), layout)
        assert all(torch.equal(a, b) for a, b in zip(planes, again, strict=True))
        lossy = layout.without_remainder
        whole = planes._replace(remainder=None, offsets=None, starts=None)
        expected = codec.decode(Planes(*planes[:4]), lossy)
        assert torch.equal(codec.decode(whole, lossy), expected)
        assert not torch.equal(expected, weight.float())


class TestRefusals:
    def test_planes_that_do_not_fit(self) -> None:
        planes, layout = encoded(normal(3, 100))
        with pytest.raises(ValueError, match=r"weight\.deviation: missing"):
            codec.decode(planes._replace(deviation=None), layout)

    @pytest.mark.parametrize("word", [0, 0x7C00, -0x8000, -1], ids=hex)
    def test_words_that_are_not_scales(self, word: int) -> None:
        planes, layout = encoded(normal(3, 100))
        planes.scale[2, 1] = word
        with pytest.raises(ValueError, match="scale: a word is not a normal fp16 number"):
            codec.decode(planes, layout)

    def test_planes_of_the_phi_grid_read_as_golden(self) -> None:
        planes, layout = encoded(normal(30, 100))
        golden = Layout(100, grid="golden", exponent=layout.exponent)
        with pytest.raises(ValueError, match="grid 'golden'"):
            codec.decode(planes, golden)
