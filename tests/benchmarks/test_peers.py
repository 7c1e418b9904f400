"""The peers are what their own projects compute."""

import math

import pytest
import torch

from benchmarks import peers


def sqnr(weight: torch.Tensor, decoded: torch.Tensor) -> float:
    return 10 * math.log10(weight.square().sum() / (weight - decoded).square().sum())


def test_nf4_table_and_codes_are_those_of_torchao() -> None:
    nf4tensor = pytest.importorskip("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
    weight = torch.randn(64, 256)
    theirs = nf4tensor.NF4Tensor.from_tensor(weight, 64, 256)
    torch.testing.assert_close(peers.nf4_levels(), theirs.nf4, atol=6e-5, rtol=0)

    data = theirs.quantized_data
    codes = torch.stack([data >> 4, data & 15], -1).flatten().long()
    absmax = weight.view(-1, 64).abs().amax(-1, keepdim=True)
    expected = (peers.nf4_levels()[codes].view(-1, 64) * absmax).view_as(weight)
    # Their table has four decimals and our scales are fp16, so a weight next to a boundary may
    # fall on the other side.
    close = (peers.nf4(weight).weight - expected).abs() < 2e-3
    assert close.float().mean() > 0.999


def test_nf4_agrees_with_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 256)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    theirs = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(peers.nf4_levels(), state.code.cpu(), atol=1e-6, rtol=0)
    close = (peers.nf4(weight).weight - theirs).abs() < 2e-3
    assert close.float().mean() > 0.999


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NF4 absmax g64", 20.6),
        ("NF4 searched g64", 21.3),
        ("int4 symmetric g64", 19.4),
        ("int4 signed g64", 20.5),
        ("int4 asymmetric g64", 20.7),
        ("int8 g64", 44.6),
        ("int8 signed g64", 44.6),
        ("entropy-coded 4.25", 6.02 * 4.25 - 1.53),
        ("entropy-coded 8.25", 6.02 * 8.25 - 1.53),
    ],
)
def test_sqnr_on_a_gaussian(name: str, expected: float) -> None:
    weight = torch.randn(512, 512)
    assert sqnr(weight, peers.PEERS[name](weight).weight) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(
    ("name", "columns", "bits"),
    [
        ("NF4 absmax g64", 128, 4.25),
        ("NF4 absmax g64", 96, 4.25 * 128 / 96),  # the short group is padded
        ("NF4 searched g64", 128, 4.25),
        ("int4 symmetric g64", 128, 4.25),
        ("int4 signed g64", 128, 4.25),
        ("int4 asymmetric g64", 128, 4.3125),
        ("int8 g64", 128, 8.25),
        ("int8 per channel", 128, 8.125),
    ],
)
def test_bits_and_shape(name: str, columns: int, bits: float) -> None:
    decoded = peers.PEERS[name](torch.randn(3, columns))
    assert decoded.weight.shape == (3, columns)
    assert decoded.weight.dtype == torch.float32
    assert decoded.bits == pytest.approx(bits)


@pytest.mark.parametrize("name", [n for n in peers.PEERS if "entropy" not in n])
def test_zero_groups_and_tiny_weights(name: str) -> None:
    weight = torch.randn(4, 256)
    weight[1] = 0
    small = peers.PEERS[name](weight * 2.0**-40).weight
    assert torch.equal(small[1], torch.zeros(256))
    # A power of two changes nothing: scales are not limited to fp16's range.
    torch.testing.assert_close(small, peers.PEERS[name](weight).weight * 2.0**-40)


def test_symmetric_rounding_by_hand() -> None:
    weight = torch.tensor([[7.0, -3.4, 0.6, 0.4]])
    assert peers.symmetric(weight, 4, group_size=4).weight.tolist() == [[7, -3, 1, 0]]
    # The largest weight gets the level -8: the scale is -7/8.
    assert peers.signed(weight, 4, group_size=4).weight.tolist() == [[7, -3.5, 0.875, 0]]
    assert peers.asymmetric(torch.tensor([[0.0, 15.0, 3.4, 7.6]]), 4, 4).weight.tolist() == [
        [0, 15, 3, 8]
    ]


def test_search_never_loses_to_absmax_and_entropy_needs_data() -> None:
    weight = torch.randn(64, 512) ** 3
    searched, absmax = (sqnr(weight, f(weight).weight) for f in (peers.nf4_searched, peers.nf4))
    assert searched > absmax + 0.1
    with pytest.raises(ValueError, match="too few"):
        peers.entropy_coded(torch.randn(4, 4), 8)
    _, bits = peers.entropy_coded(weight, 3.0)
    assert bits == pytest.approx(3.0, abs=1e-3)
