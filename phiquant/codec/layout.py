"""How planes are cut: bits, groups, and the shapes that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from phiquant.grid import DEVIATION_BITS, GRIDS, INDEX_BITS, Grid

GROUP_SIZES = (32, 64, 128)
EXPONENTS = range(-112, 113)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BLOCK = 512  # weights whose remainders begin at a byte of their own
BLOCKS_PER_START = 32
PADDING = 8  # bytes after the last block's, so that readers may load whole words


class Planes(NamedTuple):
    """The stored planes of one weight; ``...`` are the weight's leading dimensions.

    index: uint8 ``[..., groups * group_size * index_bits / 8]``.
    deviation: uint8, as index: the deviation's high 4 bits (or all of its 2), or None.
    deviation_low: uint8, as index: the low 4 bits of an 8-bit deviation, or None.
    scale: int16 ``[..., groups]``, the bits of the scale words.
    remainder: uint8 ``[n]``, the remainders of block after block, least significant bit first.
    offsets: int16 ``[..., blocks]``, the bits of unsigned bytes from a start to the block.
    starts: int64 ``[all blocks / 32]``, the byte at which every 32nd block begins; or, in memory
        only, ``[all blocks]``, one start a block: blocks of a view need not follow each other.
    exceptions: int64 ``[n, 2]``, weights that are no sub-cell's: places in the flat weight,
        ascending (one past the end is none), and their fp32 bits, 0 to 2^32 - 1; or None.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which planes do not need
    deviation: Tensor | None
    deviation_low: Tensor | None
    scale: Tensor
    remainder: Tensor | None = None
    offsets: Tensor | None = None
    starts: Tensor | None = None
    exceptions: Tensor | None = None


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
        stored_dtype: the dtype whose floats the remainder plane tells apart (bfloat16, float16 or
            float32; needs a deviation), or None where no remainder is read.

    Raises:
        ValueError: an argument is outside of its range; the message names it.
    """

    columns: int
    index_bits: int = 4
    deviation_bits: int = 4
    group_size: int = 64
    grid: str = "phi"
    exponent: int = 0
    stored_dtype: torch.dtype | None = None

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
        if self.stored_dtype is not None:
            check_choice("stored_dtype", self.stored_dtype, DTYPES)
            if self.deviation_bits == 0:  # zero is an edge of sub-cells, but no cell's
                raise ValueError("deviation_bits must be 2, 4 or 8 for an exact weight, got 0")

    @cached_property
    def curve(self) -> Grid:
        return Grid(self.grid, self.index_bits)

    @property
    def without_remainder(self) -> Layout:
        """The layout of the lossy planes alone."""
        return replace(self, stored_dtype=None)

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

    @property
    def blocks(self) -> int:
        """Blocks of remainders in a row; the last one may be short."""
        return -(-self.columns // BLOCK)

    def row_bytes(self, bits: int) -> int:
        """Bytes of one row of a plane that takes ``bits`` a weight."""
        return self.groups * self.group_size * bits // 8

    def check(self, planes: Planes, name: str = "weight") -> None:
        """Raise ValueError, naming ``name`` and the plane, unless the planes fit this layout."""
        rows = () if planes.scale is None else planes.scale.shape[:-1]
        exact, blocks = self.stored_dtype is not None, math.prod(rows) * self.blocks
        starts = -(-blocks // BLOCKS_PER_START)
        if planes.starts is not None and tuple(planes.starts.shape) == (blocks,):
            starts = blocks
        bits = {
            "index": self.index_bits,
            "deviation": self.high_bits,
            "deviation_low": self.low_bits,
        }
        wanted = {
            "scale": (True, torch.int16, (*rows, self.groups)),
            **{p: (b > 0, torch.uint8, (*rows, self.row_bytes(b))) for p, b in bits.items()},
            "remainder": (exact, torch.uint8, (max(_length(planes.remainder), PADDING),)),
            "offsets": (exact, torch.int16, (*rows, self.blocks)),
            "starts": (exact, torch.int64, (starts,)),
        }
        if planes.exceptions is not None:
            wanted["exceptions"] = (True, torch.int64, (_length(planes.exceptions), 2))
        for plane, (present, dtype, shape) in wanted.items():
            _check_plane(f"{name}.{plane}", getattr(planes, plane), present, dtype, shape)


def _length(plane: Tensor | None) -> int:
    return 0 if plane is None or plane.dim() == 0 else plane.shape[0]


def _check_plane(
    name: str, plane: Tensor | None, present: bool, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    if not present:
        if plane is not None:
            raise ValueError(f"{name}: the layout has no such plane, got {tuple(plane.shape)}")
    elif plane is None:
        raise ValueError(f"{name}: missing, expected {dtype} of shape {shape}")
    elif plane.dtype != dtype or tuple(plane.shape) != shape:
        got = f"{plane.dtype} of shape {tuple(plane.shape)}"
        raise ValueError(f"{name}: expected {dtype} of shape {shape}, got {got}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``; True and 1.0 do not pass for 1."""
    if isinstance(value, bool | float) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
