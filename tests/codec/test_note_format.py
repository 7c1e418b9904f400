"""The research note's own format, pinned byte by byte: the golden ladder and 8 deviation bits.

The note proposed 32 to 64 levels ``phi^-k`` with a sign, and an 8-bit deviation.
"""

from __future__ import annotations

import math

import pytest
import torch

from phiquant import codec
from phiquant.codec import Layout, Planes
from phiquant.grid import Grid

PHI = (1 + math.sqrt(5)) / 2
EXPONENT = -10

# fmt: off
WEIGHT = [
    -0.171875, 0.0078125, 0.08984375, 0.005859375, 0.0478515625, -0.796875, 0.0234375, -0.12890625,
    0.025390625, -0.0068359375, 0.234375, -0.2890625, 0.03515625, 0.009765625, -0.0048828125,
    -0.140625, 0.2890625, -0.05859375, 0.013671875, -0.0126953125, 0.515625, -0.0234375, 0.19921875,
    -0.095703125, -0.0029296875, -0.359375, -0.0078125, 0.04296875, -0.013671875, -0.0107421875,
    0.671875, -0.1953125,
]
# fmt: on
SCALE = 0xE2D8  # -876 * 2^-10: the largest weight is negative and lies at p = 15.84 (or 31.84)
PLANES = {
    5: (
        "3c 91 54 be d9 a6 8a 6e 10 dd 21 23 0b b0 d0 b3 d7 62 2d e0",
        "42 d3 57 8f 7d 33 c2 bc ec b1 08 f8 ab bb 6e 60",
        "46 c2 7e fa 72 a4 e5 b3 b5 ca 5e 18 e9 bb 55 c0",
    ),
    6: (
        "7c 42 24 c5 6f ec 46 2d f4 06 42 ef 41 8e d8 00 2e e8 73 5f 17 b6 0d f0",
        "42 d3 57 8f 7d 33 c2 bb ec b1 08 f8 ab bb 6e 60",
        "66 e2 7e fa 52 a4 f5 bf b5 ca 5e 18 e0 b9 45 c0",
    ),
}

note_index_bits = pytest.mark.parametrize("index_bits", [5, 6], ids="index{}".format)


def note_layout(index_bits: int) -> Layout:
    return Layout(32, index_bits, 8, 32, grid="golden", exponent=EXPONENT)


def expected_planes(index_bits: int) -> Planes:
    index, high, low = (
        torch.tensor([list(bytes.fromhex(text))], dtype=torch.uint8) for text in PLANES[index_bits]
    )
    return Planes(index, high, low, torch.tensor([[SCALE - 0x10000]], dtype=torch.int16))


@note_index_bits
def test_encodes_to_these_bytes(index_bits: int) -> None:
    planes = codec.encode(torch.tensor([WEIGHT]), note_layout(index_bits))
    expected = expected_planes(index_bits)
    for name in Planes._fields[:4]:
        assert getattr(planes, name).tolist() == getattr(expected, name).tolist(), name
    assert planes[4:] == (None,) * 4


@note_index_bits
def test_these_bytes_decode_to_the_weights_within_the_deviation(index_bits: int) -> None:
    decoded = codec.decode(expected_planes(index_bits), note_layout(index_bits))
    weight = torch.tensor([WEIGHT])
    # A cell spans a factor phi (or two linear cells near zero); 8 bits cut it in 256.
    bound = torch.maximum(weight.abs() * (PHI - 1), torch.tensor(0.01)) / 256
    assert ((decoded - weight).abs() <= bound).all()


@note_index_bits
def test_the_first_weight_by_hand(index_bits: int) -> None:
    """-0.171875 / -0.85546875 = 0.2009: between phi^-3.5 = 0.1856 and phi^-3 = 0.2361.

    So the cell is that of k = K - 3, and the weight lies 30% up its lower half: j = 0.303 * 128.
    """
    planes = expected_planes(index_bits)
    code = codec.unpack(planes.index, index_bits)[0, 0].item()
    j = codec.unpack(planes.deviation, 4)[0, 0].item() << 4
    j |= codec.unpack(planes.deviation_low, 4)[0, 0].item()
    half = 1 << index_bits - 1
    assert code - half + 1 == half - 3
    level = WEIGHT[0] / (-876 * 2.0**EXPONENT)
    assert j == int(128 * (level - PHI**-3.5) / (PHI**-3 - PHI**-3.5))


@note_index_bits
def test_levels_are_powers_of_phi_but_for_the_smallest(index_bits: int) -> None:
    """sinh differs from the power by phi^-2k: 5.6% at k = 3, 0.31% at k = 6."""
    grid = Grid("golden", index_bits)
    k = torch.arange(3, grid.half + 1).double()
    levels = grid.value(k.float(), torch.tensor(0)).double()
    gap = 1 - levels / PHI ** (k - grid.half)
    assert torch.allclose(gap, PHI ** (-2 * k), rtol=0, atol=3e-6)
    assert (gap[k >= 6] < 0.0032).all()
    assert (gap[k < 6] > 0.008).all()
    ratio = levels[1:] / levels[:-1]
    assert ((ratio / PHI - 1).abs()[k[:-1] >= 6] < 0.003).all()


@note_index_bits
def test_bits_a_weight(index_bits: int) -> None:
    """13 to 14 bits, as the note counted, and the scale word."""
    planes = expected_planes(index_bits)
    octets = sum(plane.nbytes for plane in planes[:4])
    assert octets * 8 == 32 * (index_bits + 8) + 16
