"""The part of a compressed weight that a rank holds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from phiquant.codec.layout import BLOCK
from phiquant.sharding.anew import encode_anew
from phiquant.sharding.intervals import Intervals
from phiquant.tensor import PhiTensor

_told: set[str] = set()


def cut(tensor: PhiTensor, intervals: Intervals, others: Sequence[Intervals] = ()) -> Tensor:
    """The parts of a weight within ``intervals``, put together.

    Rows, experts and whole groups of columns stay the planes they are, and are views of them where
    a dimension has one interval. Where a border of columns is inside of a group (of an exact
    weight: of a block of 512), an exact weight is encoded anew, with the same bits; a group of a
    lossy one cannot be cut, and its decoded part is returned as a plain tensor, with a warning, so
    that values stay those of the whole.

    Args:
        tensor: the whole weight.
        intervals: for every dimension of its shape, ascending ``[start, stop)``.
        others: those of all ranks, if they shall have one kind of tensor: where one of them has to
            cut a group, this one is decoded, too.

    Raises:
        ValueError: there are intervals for another number of dimensions.
    """
    if len(intervals) != tensor.dim():
        raise ValueError(
            f"{tensor.describe()}: expected intervals of {tensor.dim()} dimensions, "
            f"got {len(intervals)}"
        )
    if tensor.transposed:
        swapped = [[*held[:-2], *held[:-3:-1]] for held in (intervals, *others)]
        return cut(tensor._with(transposed=False), swapped[0], swapped[1:]).transpose(-2, -1)
    rows = tensor.scale_plane.dim() - 1
    for dim in range(rows):
        tensor = _picked(tensor, dim, intervals[dim])  # type: ignore[assignment]  # stays planes
    if intervals[rows:] == [[(0, extent)] for extent in tensor.shape[rows:]]:
        return tensor
    return _of_columns(tensor, [held[rows:] for held in (intervals, *others)])


def why_not_columns(intervals: Sequence[tuple[int, int]], columns: int, unit: int) -> str:
    """Why columns within these borders are no whole units; empty if they are."""
    for number, (start, stop) in enumerate(intervals):
        ends = stop == columns and number == len(intervals) - 1
        if start % unit or (stop % unit and not ends):
            return f"columns {start}:{stop} are not whole groups of {unit}"
    return ""


def _picked(tensor: Tensor, dim: int, intervals: Sequence[tuple[int, int]]) -> Tensor:
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in intervals]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, dim) if parts else tensor.narrow(dim, 0, 0)


def _of_columns(tensor: PhiTensor, held: Sequence[Intervals]) -> Tensor:
    """Columns in the intervals of the first of ``held``; those of all say whether it can be."""
    (first, *rest), inner = held[0], torch.Size(tensor.column_shape[1:]).numel()
    borders = [[(start * inner, stop * inner) for start, stop in one[0]] for one in held]
    unit = BLOCK if tensor.is_exact else tensor.group_size
    why_not = next(filter(None, (why_not_columns(b, tensor.columns, unit) for b in borders)), "")
    if rest != [[(0, extent)] for extent in tensor.column_shape[1:]]:
        why_not = "a part of what the columns unfold to is no whole group"
    if first and tensor.numel() and not why_not:
        flat = tensor._with(column_shape=())
        picked = _picked(flat, flat.dim() - 1, borders[0])
        assert isinstance(picked, PhiTensor)
        shape = (picked.columns // inner, *tensor.column_shape[1:])
        return picked._with(column_shape=shape) if tensor.column_shape else picked
    return _decoded(tensor, held[0], why_not)


def _decoded(tensor: PhiTensor, intervals: Intervals, why: str) -> Tensor:
    """Part of the columns by their values: encoded anew if every bit is known, else plain."""
    rows = tensor.scale_plane.dim() - 1
    part = tensor.dequantize(tensor.stored_dtype if tensor.is_exact else None)
    for dim, wanted in enumerate(intervals, rows):
        part = _picked(part, dim, wanted)
    part = part.contiguous()
    if part.numel() == 0:
        return part.to(tensor.dtype)
    if not tensor.is_exact:
        _tell(tensor, part, why)
        return part
    return encode_anew(part, tensor)


def _tell(tensor: PhiTensor, part: Tensor, why: str) -> None:
    name = tensor.describe()
    if name in _told:
        return
    _told.add(name)
    warnings.warn(
        f"phiquant: {name}: {why}, and a group shares one scale; this rank keeps its part decoded "
        f"({part.nbytes / 1e6:.1f} MB). A number of ranks that divides the groups keeps it "
        "compressed, and so does a smaller group_size",
        UserWarning,
        stacklevel=3,
    )
