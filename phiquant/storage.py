"""How a weight of any shape is stored as matrices: ``[..., rows, columns]``."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Storage(NamedTuple):
    """What lies along the rows and columns of the planes; groups run along the columns.

    transposed: the last two dimensions are stored the other way round, as those of a weight kept
        ``[in, out]`` or ``[experts, in, out]``.
    column_dims: how many of the last dimensions are one in the planes: 3 for a ``Conv2d``'s weight
        ``[out, in, height, width]``, which is stored as ``[out, in * height * width]``.

    >>> Storage(column_dims=3).shape((16, 8, 3, 3))
    (16, 72)
    >>> Storage(transposed=True).shape((4, 64, 256))
    (4, 256, 64)
    """

    transposed: bool = False
    column_dims: int = 1

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in which a weight of this shape is stored."""
        if self.transposed:
            return (*shape[:-2], shape[-1], shape[-2])
        return (*shape[: -self.column_dims], math.prod(shape[-self.column_dims :]))

    def column_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the columns unfold to; empty if they are one dimension."""
        return tuple(shape[-self.column_dims :]) if self.column_dims > 1 else ()

    def apply(self, weight: Tensor) -> Tensor:
        """The weight as it is stored, contiguous."""
        stored = weight.transpose(-2, -1) if self.transposed else weight
        return stored.reshape(self.shape(tuple(weight.shape))).contiguous()

    def check(self, weight: Tensor, name: str) -> None:
        """Raise ValueError unless a weight of this shape can be stored so."""
        if self.transposed and self.column_dims != 1:
            raise ValueError(
                f"{name}: column_dims must be 1 for a transposed weight, got {self.column_dims}"
            )
        if not 1 <= self.column_dims < weight.dim():
            raise ValueError(
                f"{name}: column_dims must be from 1 to {weight.dim() - 1} for a weight of "
                f"{weight.dim()} dimensions, got {self.column_dims}"
            )


ROWS_AND_COLUMNS = Storage()  # a Linear weight is a matrix already
