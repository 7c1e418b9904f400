"""Encode an exact weight anew: the same bits in other planes."""

from __future__ import annotations

from torch import Tensor

from phiquant.tensor import PhiTensor


def encode_anew(weight: Tensor, like: PhiTensor) -> PhiTensor:
    """An exact weight of these bits, encoded as ``like`` was, that decodes to the same dtype.

    Args:
        weight: in the shape that it has outside of the planes, as ``like``'s but for extents.
        like: an exact weight.
    """
    tensor = PhiTensor.from_hp(
        weight,
        like.config,
        name=like.describe(),
        transposed=like.transposed,
        column_dims=max(1, len(like.column_shape)),
    )
    return tensor._with(dtype=like.dtype)
