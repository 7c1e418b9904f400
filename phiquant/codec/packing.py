"""Small integers in byte planes: least significant bit first, groups padded to their full size."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integers below ``2^bits`` into bytes.

    Args:
        codes: integers ``[..., n]``, ``n * bits`` a multiple of 8.
        bits: 1 to 8.

    Returns:
        uint8 ``[..., n * bits / 8]``.

    >>> pack(torch.tensor([1, 2, 3, 15]), 4).tolist()
    [33, 243]
    """
    places = torch.arange(bits, device=codes.device)
    stream = (codes.unsqueeze(-1).long() >> places & 1).flatten(-2)
    octets = stream.unflatten(-1, (-1, 8))
    return (octets << torch.arange(8, device=codes.device)).sum(-1).to(torch.uint8)


def unpack(plane: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack`: uint8 ``[..., m]`` to int64 ``[..., m * 8 / bits]``."""
    stream = (plane.unsqueeze(-1).long() >> torch.arange(8, device=plane.device) & 1).flatten(-2)
    codes = stream.unflatten(-1, (-1, bits))
    return (codes << torch.arange(bits, device=plane.device)).sum(-1)
