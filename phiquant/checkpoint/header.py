"""The header of a stored weight: all that is needed to read its planes, in one vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phiquant.checksum import SIZE
from phiquant.codec import FITS, Layout
from phiquant.codec.layout import BLOCKS_PER_START, DTYPES, PADDING
from phiquant.grid import GRIDS
from phiquant.tensor import PhiTensor

VERSION = 1
_DIMENSIONS = 16  # no weight has more
_LARGEST = 1 << 62  # no count, and no number of weights, is larger

_NAMES = (
    "index_bits",
    "deviation_bits",
    "group_size",
    "grid",
    "exponent",
    "fit",
    "stored_dtype",
    "dtype",
    "transposed",
    "column_dims",
    "remainder",
    "exceptions",
    "has_checksum",
)

FIELDS = 1 + len(_NAMES)  # before the shape
Expected = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Header:
    """What a file says of one weight.

    Args:
        layout: how the planes are cut; with ``stored_dtype`` where there is a remainder.
        shape: of the weight, as a model sees it.
        column_dims: how many of its last dimensions are the columns that groups run along.
        transposed: whether the planes are those of the weight with its last two dimensions swapped.
        fit: what the choice of bends minimised.
        stored_dtype: the dtype that was encoded.
        dtype: the dtype that the weight claims and decodes to.
        remainder: bytes of the remainder plane, 0 if there is none.
        exceptions: how many there are.
        has_checksum: whether there is a checksum of the stored weight.
    """

    layout: Layout
    shape: tuple[int, ...]
    column_dims: int
    transposed: bool
    fit: str
    stored_dtype: torch.dtype
    dtype: torch.dtype
    remainder: int
    exceptions: int
    has_checksum: bool

    @classmethod
    def of(cls, tensor: PhiTensor) -> Header:
        """The header of a tensor whose blocks of remainders, if any, follow each other."""
        layout = Layout(
            tensor.columns,
            tensor.index_bits,
            tensor.deviation_bits,
            tensor.group_size,
            tensor.grid,
            tensor.exponent,
            tensor.stored_dtype if tensor.is_exact else None,
        )
        rest, exceptions = tensor.remainder_plane, tensor.exception_plane
        return cls(
            layout=layout,
            shape=tuple(tensor.shape),
            column_dims=max(1, len(tensor.column_shape)),
            transposed=tensor.transposed,
            fit=tensor.fit,
            stored_dtype=tensor.stored_dtype,
            dtype=tensor.dtype,
            remainder=0 if rest is None else rest.numel(),
            exceptions=0 if exceptions is None else exceptions.shape[0],
            has_checksum=tensor.checksum_plane is not None,
        )

    def to_tensor(self) -> Tensor:
        """int64 ``[14 + dimensions]``, as docs/format.md lists it."""
        layout = self.layout
        numbers = [
            VERSION,
            layout.index_bits,
            layout.deviation_bits,
            layout.group_size,
            GRIDS.index(layout.grid),
            layout.exponent,
            FITS.index(self.fit),
            DTYPES.index(self.stored_dtype),
            DTYPES.index(self.dtype),
            int(self.transposed),
            self.column_dims,
            self.remainder,
            self.exceptions,
            int(self.has_checksum),
        ]
        return torch.tensor([*numbers, *self.shape], dtype=torch.int64)

    @classmethod
    def from_tensor(cls, numbers: Tensor) -> Header:
        """Read a header that anyone may have written.

        Raises:
            ValueError: a number is none that version 1 allows; the message says which.
        """
        count = numbers.numel()
        if numbers.dtype != torch.int64 or numbers.dim() != 1 or not count:
            got = f"{numbers.dtype} of shape {tuple(numbers.shape)}"
            raise ValueError(f"expected a vector of torch.int64, got {got}")
        version, *fields = numbers[: FIELDS + _DIMENSIONS].tolist()
        if version != VERSION:
            raise ValueError(
                f"format version must be {VERSION}, got {version}; a newer phiquant may read it"
            )
        if not FIELDS < count <= FIELDS + _DIMENSIONS:
            raise ValueError(
                f"expected {FIELDS} numbers and a shape of 1 to {_DIMENSIONS}, got {count} numbers"
            )
        said = dict(zip(_NAMES, fields, strict=False))
        header = cls._of_numbers(said, tuple(fields[FIELDS - 1 :]))
        header._check()
        return header

    @classmethod
    def _of_numbers(cls, said: dict[str, int], shape: tuple[int, ...]) -> Header:
        stored_dtype = _choice("stored_dtype", said["stored_dtype"], DTYPES)
        column_dims = said["column_dims"]
        if not 1 <= column_dims <= len(shape) or any(not 1 <= n <= _LARGEST for n in shape):
            raise ValueError(f"shape {shape} with {column_dims} dimensions of columns is none")
        if math.prod(shape) > _LARGEST:
            raise ValueError(f"shape {shape} has more weights than any machine holds")
        transposed = _choice("transposed", said["transposed"], (False, True))
        if transposed and (column_dims > 1 or len(shape) < 2):
            raise ValueError(f"transposed: not possible for shape {shape}")
        columns = math.prod(shape[-column_dims:])
        layout = Layout(
            shape[-2] if transposed else columns,
            said["index_bits"],
            said["deviation_bits"],
            said["group_size"],
            _choice("grid", said["grid"], GRIDS),
            said["exponent"],
            stored_dtype if said["remainder"] else None,
        )
        return cls(
            layout=layout,
            shape=shape,
            column_dims=column_dims,
            transposed=transposed,
            fit=_choice("fit", said["fit"], FITS),
            stored_dtype=stored_dtype,
            dtype=_choice("dtype", said["dtype"], DTYPES),
            remainder=said["remainder"],
            exceptions=said["exceptions"],
            has_checksum=_choice("has_checksum", said["has_checksum"], (False, True)),
        )

    def _check(self) -> None:
        if self.remainder != 0 and not PADDING <= self.remainder <= _LARGEST:
            raise ValueError(f"remainder must be 0 or from {PADDING} bytes, got {self.remainder}")
        if not 0 <= self.exceptions <= math.prod(self.shape):
            raise ValueError(
                f"exceptions must be from 0 to {math.prod(self.shape)}, got {self.exceptions}"
            )
        if self.has_checksum and not self.remainder:
            raise ValueError("has_checksum: only a weight with a remainder has a checksum")

    @property
    def rows(self) -> tuple[int, ...]:
        """The leading dimensions of the planes."""
        if self.transposed:
            return (*self.shape[:-2], self.shape[-1])
        return self.shape[: -self.column_dims]

    @property
    def planes(self) -> Expected:
        """dtype and shape of every plane that the file must have; no other may be there."""
        layout, rows = self.layout, self.rows
        blocks = math.prod(rows) * layout.blocks
        expected: Expected = {
            "index": (torch.uint8, (*rows, layout.row_bytes(layout.index_bits))),
            "scale": (torch.int16, (*rows, layout.groups)),
        }
        if layout.high_bits:
            expected["deviation"] = (torch.uint8, (*rows, layout.row_bytes(layout.high_bits)))
        if layout.low_bits:
            expected["deviation_low"] = (torch.uint8, (*rows, layout.row_bytes(layout.low_bits)))
        if self.remainder:
            expected["remainder"] = (torch.uint8, (self.remainder,))
            expected["offsets"] = (torch.int16, (*rows, layout.blocks))
            expected["starts"] = (torch.int64, (-(-blocks // BLOCKS_PER_START),))
        if self.exceptions:
            expected["exceptions"] = (torch.int64, (self.exceptions, 2))
        if self.has_checksum:
            expected["checksum"] = (torch.uint8, (SIZE,))
        return expected

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of :class:`phiquant.PhiTensor`."""
        layout = self.layout
        unfolded = self.shape[-self.column_dims :] if self.column_dims > 1 else ()
        return {
            "columns": layout.columns,
            "index_bits": layout.index_bits,
            "deviation_bits": layout.deviation_bits,
            "group_size": layout.group_size,
            "grid": layout.grid,
            "exponent": layout.exponent,
            "fit": self.fit,
            "stored_dtype": self.stored_dtype,
            "dtype": self.dtype,
            "transposed": self.transposed,
            "column_shape": unfolded,
        }


def _choice(name: str, number: int, choices: tuple[Any, ...]) -> Any:
    if not 0 <= number < len(choices):
        raise ValueError(f"{name} must be from 0 to {len(choices) - 1}, got {number}")
    return choices[number]
