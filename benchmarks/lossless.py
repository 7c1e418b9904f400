"""What others take to store bf16 weights without loss, and the least that coding exponents can.

Sizes are bits a weight, everything that a reader needs counted. Nothing is reported that does not
come back bit for bit. The two packages come with ``pip install 'phiquant[peers]'``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from importlib import metadata
from types import ModuleType

import torch
from torch import Tensor

SIGN_AND_MANTISSA_BITS = 8
DFLOAT11_PUBLISHED = 10.85  # bits a weight, from its paper; an LLM's, not these weights'


class MissingPeer(RuntimeError):
    """A package to compare with is not installed; the message names it and the remedy."""


class NotLossless(RuntimeError):
    """Bytes came back changed."""


def exponent_floor(weights: Iterable[Tensor]) -> float:
    """8 bits for sign and mantissa, and the entropy of the exponents of all weights together.

    Args:
        weights: bf16 tensors.
    """
    counts = torch.zeros(256, dtype=torch.int64)
    for weight in weights:
        exponents = weight.view(torch.int16).int() >> 7 & 255
        counts += torch.bincount(exponents.flatten(), minlength=256)
    share = counts[counts > 0].double() / counts.sum()
    return SIGN_AND_MANTISSA_BITS - (share * share.log2()).sum().item()


def zstd(data: bytes) -> tuple[bytes, bytes]:
    """zstd at level 19."""
    package = _package("zstandard")
    packed = package.ZstdCompressor(level=19).compress(data)
    return packed, package.ZstdDecompressor().decompress(packed)


def zipnn(data: bytes) -> tuple[bytes, bytes]:
    """ZipNN: exponents apart from the rest, Huffman-coded."""
    coder = _package("zipnn").ZipNN(bytearray_dtype="bfloat16", threads=1)
    packed = bytes(coder.compress(bytearray(data)))  # it works in place
    return packed, bytes(coder.decompress(packed))


Peer = Callable[[bytes], tuple[bytes, bytes]]
PEERS: dict[str, Peer] = {"zstd -19": zstd, "zipnn": zipnn}


def versions() -> dict[str, str | None]:
    """Of the packages that are compared with; None for one that is not installed."""
    return {name: _version(name) for name in ("zstandard", "zipnn")}


def packed_bytes(peer: str, weight: Tensor) -> int:
    """How many bytes a peer makes of a bf16 weight.

    Raises:
        MissingPeer: its package is not installed.
        NotLossless: it gave other bytes back.
    """
    data = weight.contiguous().view(torch.int16).numpy().tobytes()
    packed, again = PEERS[peer](data)
    if again != data:
        raise NotLossless(f"{peer}: {len(data)} bytes came back changed")
    return len(packed)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPeer(f"{name} is not installed: pip install 'phiquant[peers]'") from error
