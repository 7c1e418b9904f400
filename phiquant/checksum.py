"""The checksum of an exact weight: 16 bytes that tell whether every bit came back."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

SIZE = 16  # bytes
PART = 1 << 20  # weights that are looked at together


def checksum(parts: Iterable[Tensor]) -> Tensor:
    """BLAKE2b, cut to 16 bytes, of the weights' bits one after the other.

    Args:
        parts: plain tensors of the stored dtype, in row-major order; each is read as it comes, so
            that no more than one has to be in memory.

    Returns:
        uint8 ``[16]`` on the CPU; the same on every machine: bits are taken in little-endian order.
    """
    state = hashlib.blake2b(digest_size=SIZE)
    for part in parts:
        octets = part.detach().cpu().contiguous().view(torch.uint8)
        if sys.byteorder == "big":
            octets = octets.view(-1, part.itemsize).flip(-1).contiguous()
        state.update((ctypes.c_ubyte * octets.numel()).from_address(octets.data_ptr()))
    return torch.tensor(list(state.digest()), dtype=torch.uint8)


def of_weight(weight: Tensor) -> Tensor:
    """The checksum of a contiguous weight, uint8 ``[16]`` on its device."""
    return checksum(weight.detach().view(-1).split(PART)).to(weight.device)
