"""Flush-to-zero modes change no bit, and are put back."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch

from phiquant import codec
from phiquant.codec import Layout
from phiquant.codec.denormals import denormals_kept
from tests.codec.support import same_planes

# One bend and few bits: arithmetic with denormals is slow.
LAYOUT = Layout(64, index_bits=3, deviation_bits=2, grid="golden", exponent=-112)

needs_mode = pytest.mark.skipif(
    not torch.set_flush_denormal(False), reason="this processor has no flush-to-zero mode"
)


def flushes() -> bool:
    return (torch.tensor([2.0**-126]) * 0.5).item() == 0


def denormal_weight() -> torch.Tensor:
    """Enough for two threads; every eighth group is below the smallest normal number."""
    bits = torch.randint(1 << 23, (520, 64), generator=torch.Generator().manual_seed(0))
    sign = torch.randint(2, bits.shape, generator=torch.Generator().manual_seed(1)) << 31
    bits[torch.arange(520) % 8 > 0] += 0x0A000000
    return (bits | sign).to(torch.int32).view(torch.float32)


@needs_mode
class TestMode:
    @pytest.mark.parametrize("mode", [True, False])
    def test_is_put_back(self, mode: bool) -> None:
        torch.set_flush_denormal(mode)
        threads = torch.get_num_threads()
        with denormals_kept():
            assert not flushes()
        assert flushes() == mode
        assert torch.get_num_threads() == threads

    def test_is_put_back_after_an_error(self) -> None:
        torch.set_flush_denormal(True)
        with pytest.raises(ValueError, match="fit"):
            codec.encode(torch.ones(1, 64), Layout(64), "none")
        with pytest.raises(KeyError), denormals_kept():
            raise KeyError
        assert flushes()

    def test_changes_no_bit(self) -> None:
        weight = denormal_weight()
        planes = codec.encode(weight, LAYOUT)
        decoded = codec.decode(planes, LAYOUT)
        torch.set_flush_denormal(True)
        again = codec.encode(weight, LAYOUT)
        decoded_again = codec.decode(planes, LAYOUT)
        torch.set_flush_denormal(False)
        assert same_planes(planes, again)
        assert torch.equal(decoded, decoded_again)
        assert decoded.count_nonzero() > 0

    def test_threads_that_started_in_the_mode_change_no_bit(self) -> None:
        """Worker threads inherit the mode when they start, and keep it."""
        planes = codec.encode(denormal_weight(), LAYOUT)
        expected = digest(planes, codec.decode(planes, LAYOUT))
        command = [sys.executable, "-W", "ignore", "-c", WITH_FLUSHING_THREADS]
        output = subprocess.run(command, capture_output=True, text=True, check=False)
        assert output.stdout.split() == [expected, expected], output.stderr


WITH_FLUSHING_THREADS = """
import torch
torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.ones(1 << 22).mul(2)
from tests.codec.test_denormals import *
torch.set_flush_denormal(False)
weight = denormal_weight()
for mode in (True, False):
    torch.set_flush_denormal(mode)
    planes = codec.encode(weight, LAYOUT)
    decoded = codec.decode(planes, LAYOUT)
    torch.set_flush_denormal(False)
    print(digest(planes, decoded))
"""


def digest(planes: codec.Planes, decoded: torch.Tensor) -> str:
    tensors = [plane for plane in planes if plane is not None] + [decoded]
    data = b"".join(bytes(t.contiguous().view(torch.uint8).flatten().tolist()) for t in tensors)
    return hashlib.sha256(data).hexdigest()
