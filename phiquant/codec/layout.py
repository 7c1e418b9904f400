"""How planes are cut: bits, groups, and the shapes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from phiquant.grid import DEVIATION_BITS, GRIDS, INDEX_BITS, Grid

GROUP_SIZES = (32, 64, 128)
EXPONENTS = range(-112, 113)


class Planes(NamedTuple):
    """The stored planes of one weight, all with the weight's leading dimensions.

    index: uint8 ``[..., groups * group_size * index_bits / 8]``.
    deviation: uint8, the deviation's high 4 bits (or all of its 2), or None.
    deviation_low: uint8, the low 4 bits of an 8-bit deviation, or None.
    scale: int16 ``[..., groups]``, the bits of the scale words.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which planes do not need
    deviation: Tensor | None
    deviation_low: Tensor | None
    scale: Tensor


@dataclass(frozen=True)
class Layout:
    """Everything that is needed to read planes.

    Args:
        columns: length of the reduction dimension, at least 1.
        index_bits: 2 to 6.
        deviation_bits: 0, 2, 4 or 8.
        group_size: 32, 64 or 128 weights that share a scale word.
        grid: "phi" or "golden".
        exponent: the power of two that multiplies every scale word, -112 to 112.

    Raises:
        ValueError: an argument is outside of its range; the message names it.
    """

    columns: int
    index_bits: int = 4
    deviation_bits: int = 4
    group_size: int = 64
    grid: str = "phi"
    exponent: int = 0

    def __post_init__(self) -> None:
        check_choice("index_bits", self.index_bits, INDEX_BITS)
        check_choice("deviation_bits", self.deviation_bits, DEVIATION_BITS)
        check_choice("group_size", self.group_size, GROUP_SIZES)
        check_choice("grid", self.grid, GRIDS)
        columns = self.columns
        integral = isinstance(columns, int | torch.SymInt) and not isinstance(columns, bool)
        if not integral or columns < 1:
            raise ValueError(f"columns must be a positive integer, got {self.columns!r}")
        if isinstance(self.exponent, bool | float) or self.exponent not in EXPONENTS:
            raise ValueError(f"exponent must be from -112 to 112, got {self.exponent!r}")

    @cached_property
    def curve(self) -> Grid:
        return Grid(self.grid, self.index_bits)

    @property
    def groups(self) -> int:
        """Groups in a row; the last one may be short."""
        return -(-self.columns // self.group_size)

    @property
    def high_bits(self) -> int:
        """Bits a weight in the first deviation plane."""
        return min(self.deviation_bits, 4)

    @property
    def low_bits(self) -> int:
        """Bits a weight in the second deviation plane."""
        return self.deviation_bits - self.high_bits

    def row_bytes(self, bits: int) -> int:
        """Bytes of one row of a plane that takes ``bits`` a weight."""
        return self.groups * self.group_size * bits // 8

    def check(self, planes: Planes, name: str = "weight") -> None:
        """Raise ValueError, naming ``name`` and the plane, unless the planes fit this layout."""
        rows = () if planes.scale is None else planes.scale.shape[:-1]
        wanted = {
            "scale": (torch.int16, self.groups),
            "index": (torch.uint8, self.row_bytes(self.index_bits)),
            "deviation": (torch.uint8, self.row_bytes(self.high_bits)),
            "deviation_low": (torch.uint8, self.row_bytes(self.low_bits)),
        }
        for plane, (dtype, width) in wanted.items():
            _check_plane(f"{name}.{plane}", getattr(planes, plane), dtype, (*rows, width))


def _check_plane(
    name: str, plane: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    if shape[-1] == 0:
        if plane is not None:
            raise ValueError(f"{name}: the layout has no such plane, got {tuple(plane.shape)}")
        return
    if plane is None:
        raise ValueError(f"{name}: missing, expected {dtype} of shape {shape}")
    if plane.dtype != dtype or tuple(plane.shape) != shape:
        got = f"{plane.dtype} of shape {tuple(plane.shape)}"
        raise ValueError(f"{name}: expected {dtype} of shape {shape}, got {got}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``; True and 1.0 do not pass for 1."""
    if isinstance(value, bool | float) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
