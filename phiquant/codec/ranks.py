"""Ranks: the floats of a dtype counted from zero, so that a float is a sign and an integer.

The rank of a float is its bits without the sign: 0 for both zeros, 1 for the smallest denormal.
Ranks ascend with the magnitude, so "how many floats lie between" is a subtraction.
"""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {
    torch.bfloat16: (torch.int16, 0x7FFF),
    torch.float16: (torch.int16, 0x7FFF),
    torch.float32: (torch.int32, 0x7FFFFFFF),
}
_HALF_NORMAL = 2.0**-14
_HALF_DENORMALS = 2.0**24  # times this, an fp16 denormal is its rank
_HALF_INFINITY = 0x7C00


def split_sign(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A float tensor to (bool signs, int64 ranks) of its shape."""
    integer, mask = _INTEGERS[weight.dtype]
    bits = weight.view(integer).long()
    return bits < 0, bits & mask


def join_sign(negative: Tensor, ranks: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`split_sign`."""
    integer, mask = _INTEGERS[dtype]
    return torch.where(negative, ranks - mask - 1, ranks).to(integer).view(dtype)


def first_rank(edge: Tensor, beyond: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest rank at an edge, int64.

    Args:
        edge: fp32 >= 0.
        beyond: bool; True asks for a float greater than the edge, False for one not less.
        dtype: the floats that are counted: bfloat16, float16 or float32.
    """
    bits = edge.view(torch.int32).long()
    more = beyond.long()
    if dtype == torch.float32:
        return bits + more
    if dtype == torch.bfloat16:
        return bits + 0xFFFF + more >> 16
    normal = bits - (112 << 23) + 0x1FFF + more >> 13
    scaled = edge * _HALF_DENORMALS
    denormal = torch.where(beyond, scaled.floor() + 1, scaled.ceil())
    ranks = torch.where(edge < _HALF_NORMAL, denormal.clamp(max=1024).long(), normal)
    return ranks.clamp(max=_HALF_INFINITY)
