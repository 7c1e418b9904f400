"""Weights as bytes."""

from __future__ import annotations

import pytest
import torch

from phiquant import PhiConfig, PhiTensor
from phiquant.sharding import wire
from tests.support import compressed, same_bits, weight, with_specials

TIERS = {
    "index": PhiConfig(deviation_bits=0),
    "deviation 8": PhiConfig(deviation_bits=8),
    "exact": PhiConfig(exact=True),
}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("shape", [(5, 130), (3, 4, 1100)], ids=str)
@pytest.mark.parametrize("padding", [0, 13], ids=["tight", "padded"])
def test_there_and_back(tier: str, shape: tuple[int, ...], padding: int) -> None:
    sent = PhiTensor.from_hp(
        with_specials(weight(*shape)) if tier == "exact" else weight(*shape), TIERS[tier]
    )
    octets = wire.pack(sent, wire.length(sent) + padding)
    assert octets.shape == (wire.length(sent) + padding,)
    like = PhiTensor.from_hp(weight(1, *shape[1:], seed=9), TIERS[tier])
    received = wire.unpack(octets, like, shape[0])
    assert torch.equal(received, sent)
    assert same_bits(received.dequantize(), sent.dequantize())


def test_a_row_of_a_weight() -> None:
    """The starts of a slice's blocks are views with other strides."""
    rows = compressed(64, 128, exact=True)[32:33]
    assert isinstance(rows, PhiTensor)
    received = wire.unpack(wire.pack(rows), rows, 1)
    assert same_bits(received.dequantize(), rows.dequantize())
