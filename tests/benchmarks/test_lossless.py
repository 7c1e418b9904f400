"""Peers come back bit for bit before they count; the floor is an entropy; ideas count true bits."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from benchmarks import lossless
from benchmarks.exact_ideas import IDEAS, bound, counts_of, stored, widths
from benchmarks.lossless import MissingPeer, NotLossless, exponent_floor, packed_bytes
from phiquant import PhiConfig, PhiTensor
from phiquant.codec import Layout
from phiquant.codec.layout import PADDING

CHECKSUM = 16


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) * 0.02).bfloat16()


class TestFloor:
    def test_of_one_exponent(self) -> None:
        assert exponent_floor([torch.linspace(1, 1.9, 50).bfloat16()]) == 8

    def test_of_four_equally_frequent_ones(self) -> None:
        weights = [torch.tensor([1.0, -2.0]).bfloat16(), torch.tensor([4.0, 8.5]).bfloat16()]
        assert exponent_floor(weights) == 10

    def test_of_normal_weights(self) -> None:
        assert exponent_floor([normal(1000, 100)]) == pytest.approx(10.6, abs=0.1)


class TestPeers:
    @pytest.mark.parametrize(("peer", "package"), [("zstd -19", "zstandard"), ("zipnn", "zipnn")])
    def test_pack_normal_weights(self, peer: str, package: str) -> None:
        pytest.importorskip(package)
        weight = normal(256, 512)
        bits = 8 * packed_bytes(peer, weight) / weight.numel()
        assert exponent_floor([weight]) - 0.1 < bits < 13

    @pytest.mark.parametrize(("peer", "package"), [("zstd -19", "zstandard"), ("zipnn", "zipnn")])
    def test_a_missing_one_is_named(
        self, monkeypatch: pytest.MonkeyPatch, peer: str, package: str
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingPeer, match=rf"{package} is not installed: pip install"):
            packed_bytes(peer, normal(2, 64))

    def test_one_that_changes_a_bit_does_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def careless(data: bytes) -> tuple[bytes, bytes]:
            return data[:1], bytes([data[0] ^ 1, *data[1:]])

        monkeypatch.setitem(lossless.PEERS, "careless", careless)
        with pytest.raises(NotLossless, match="careless: 256 bytes came back changed"):
            packed_bytes("careless", normal(2, 64))


class TestIdeas:
    @pytest.mark.parametrize("columns", [64, 512, 700, 1536])
    def test_as_stored_is_what_is_stored(self, columns: int) -> None:
        tensor = PhiTensor.from_hp(normal(40, columns), PhiConfig(exact=True))
        counts = counts_of(tensor.planes, Layout(*tensor.op_arguments))
        lossy = 8 * sum(plane.nbytes for plane in tensor.planes[:4] if plane is not None)
        assert lossy + stored(counts) == 8 * (tensor.stored_bytes - PADDING - CHECKSUM)

    @pytest.mark.parametrize("together", [1, 2, 4])
    def test_widths_are_those_of_products(self, together: int) -> None:
        counts = torch.randint(1, 1 << 15, (3, 41), generator=torch.Generator().manual_seed(0))
        counts[1] = 1 << 15  # as exact powers of two, and one more and one less, round most easily
        counts[2, ::2] = (1 << 15) - 1
        found = widths(counts, together).tolist()
        for row, got in zip(counts.tolist(), found, strict=True):
            parts = [row[at : at + together] for at in range(0, len(row), together)]
            assert got == [(math.prod(part) - 1).bit_length() for part in parts]

    def test_none_is_below_the_bound(self) -> None:
        tensor = PhiTensor.from_hp(normal(20, 600), PhiConfig(exact=True))
        counts = counts_of(tensor.planes, Layout(*tensor.op_arguments))
        sizes = {name: idea(counts) for name, idea in IDEAS.items()}
        assert min(sizes.values()) == bound(counts) > 0
        assert sizes["as stored: blocks of 512"] > sizes["no offsets at all"]
        assert sizes["fours in mixed radix, blocks of 512"] < sizes["as stored: blocks of 512"]
