"""Views: a transpose, rows and whole groups of columns, leading dimensions regrouped.

What cuts through a group (of an exact weight: a block) decodes the groups that it touches; what
mixes the columns with other dimensions decodes the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from phiquant import codec
from phiquant.aten.fallback import decode_and_run
from phiquant.aten.rooms import FlatView
from phiquant.codec.layout import BLOCK
from phiquant.tensor import PhiTensor

aten = torch.ops.aten


@PhiTensor.implements([aten.t.default, aten.transpose.int, aten.permute.default])
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    self = args[0]
    order = list(range(self.dim()))
    swapped = order if self.column_shape else [*order[:-2], *order[:-3:-1]]
    if func is aten.permute.default:
        wanted = [_dim(self, d) for d in args[1]]
    else:
        a, b = (_dim(self, d) for d in args[1:]) if len(args) > 1 else (0, self.dim() - 1)
        wanted = list(order)
        wanted[a], wanted[b] = b, a
    if wanted not in (order, swapped):
        return decode_and_run(func, args, kwargs)
    flipped = self._with(transposed=self.transposed ^ (wanted == swapped != order))
    return return_and_correct_aliasing(func, args, kwargs, flipped)


@PhiTensor.implements([aten.view.default, aten._unsafe_view.default])
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    self, shape = args[0], _inferred(args[0], args[1])
    if list(args[1]) == [-1] and not torch.compiler.is_compiling():
        return FlatView(self)
    if shape == list(self.shape):
        return return_and_correct_aliasing(func, args, kwargs, self._with())
    columns = _columns_of(self, shape)
    if columns is None:
        # reshape() hands over a clone, which it takes to be contiguous: a transpose is not
        contiguous = func is aten._unsafe_view.default
        return decode_and_run(torch.reshape if contiguous else func, args, kwargs)
    regrouped = _regrouped(self, shape[: len(shape) - max(1, len(columns))])
    return return_and_correct_aliasing(func, args, kwargs, regrouped._with(column_shape=columns))


def _columns_of(self: PhiTensor, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The columns at the end of a shape, () for one dimension; None if they are not kept."""
    if self.transposed or len(shape) < 2:
        return None
    if shape[-1] == self.columns:
        return ()
    unfolded = self.column_shape
    return unfolded if unfolded and tuple(shape[-len(unfolded) :]) == unfolded else None


def _regrouped(self: PhiTensor, leading: Sequence[int]) -> PhiTensor:
    """Other leading dimensions; planes that do not have them say the same of either shape."""

    def view(plane: Tensor | None) -> Tensor | None:
        return None if plane is None else plane.view(*leading, plane.shape[-1])

    planes = self.planes
    shaped: dict[str, Any] = {name: view(getattr(planes, name)) for name in codec.SHAPED}
    return self.on(planes._replace(**shaped))


def _inferred(self: PhiTensor, shape: Sequence[int]) -> list[int]:
    """The shape with a -1 replaced, if the rest allows one."""
    known = math.prod(extent for extent in shape if extent != -1)
    if known == 0 or self.numel() % known:
        return list(shape)
    return [self.numel() // known if extent == -1 else extent for extent in shape]


@PhiTensor.implements(aten.slice.Tensor)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    self, dim, start, stop, step = args + (0, None, None, 1)[len(args) - 1 :]
    if _is_unfolded(self, dim):
        whole = slice(start, stop, step).indices(self.shape[dim]) == (0, self.shape[dim], 1)
        return self._with() if whole else decode_and_run(func, args, kwargs)
    cut = _cut(self, _stored_dim(self, dim), start, stop, step)
    if cut is None:
        return _pierce(self, dim, *slice(start, stop).indices(self.columns)[:2], step)
    if self.is_vacant and _stored_dim(self, dim) == 0 and not start:
        cut.room = self
    return return_and_correct_aliasing(func, args, kwargs, cut)


@PhiTensor.implements([aten.split.Tensor, aten.split_with_sizes.default])
def _(func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
    self, sizes, dim = (*args, 0)[:3]
    if _is_unfolded(self, dim):
        return decode_and_run(func, args, kwargs)
    stored = _stored_dim(self, dim)
    extent = _extent(self, stored)
    if isinstance(sizes, int):
        if sizes < 1:
            return decode_and_run(func, args, kwargs)
        sizes = [min(sizes, extent - start) for start in range(0, max(extent, 1), sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    cuts = [_cut(self, stored, a, a + n, 1) for a, n in zip(starts, sizes, strict=True)]
    if sum(sizes) != extent or any(cut is None for cut in cuts):
        return decode_and_run(func, args, kwargs)
    return return_and_correct_aliasing(func, args, kwargs, cuts)


@PhiTensor.implements(aten.select.int)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """A row, or the matrix of one expert; a row stays compressed so that no write to it is lost."""
    self, dim, place = args
    if _is_unfolded(self, dim):
        return decode_and_run(func, args, kwargs)
    stored = _stored_dim(self, dim)
    last = self.scale_plane.dim() - 1
    if stored == last:
        if not -self.columns <= place < self.columns:
            raise IndexError(
                f"{self.describe()}: column {place} is out of range for {self.columns} columns"
            )
        place %= self.columns
        return _pierce(self, dim, place, place + 1, 1).squeeze(dim)
    picked = _of_rows(self, lambda plane: plane.select(stored, place))
    if stored == last - 1:  # one row of each: no rows are left that a transpose could swap
        picked = picked._with(transposed=False)
    return return_and_correct_aliasing(func, args, kwargs, picked)


def _dim(self: PhiTensor, dim: int) -> int:
    dims = self.scale_plane.dim() + max(1, len(self.column_shape)) - 1
    if not -dims <= dim < dims:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-dims}, {dims - 1}], got {dim})"
        )
    return dim % dims


def _is_unfolded(self: PhiTensor, dim: int) -> bool:
    """Whether this is one of several dimensions that the columns unfold to."""
    return bool(self.column_shape) and _dim(self, dim) >= self.scale_plane.dim() - 1


def _stored_dim(self: PhiTensor, dim: int) -> int:
    """The dimension of the planes that ``dim`` of a possibly transposed tensor stands for."""
    dim, last = _dim(self, dim), self.scale_plane.dim() - 1
    return {last: last - 1, last - 1: last}.get(dim, dim) if self.transposed else dim


def _extent(self: PhiTensor, stored: int) -> int:
    last = stored == self.scale_plane.dim() - 1
    return self.columns if last else self.scale_plane.shape[stored]


def _cut(
    self: PhiTensor, stored: int, start: int | None, stop: int | None, step: int
) -> PhiTensor | None:
    """Rows, or columns from one border to another; None where it is no border."""
    extent = _extent(self, stored)
    start, stop, _ = slice(start, stop).indices(extent)
    if (start, stop, step) == (0, extent, 1):
        return self._with()
    if stored < self.scale_plane.dim() - 1:
        return _of_rows(self, lambda plane: aten.slice.Tensor(plane, stored, start, stop, step))
    unit = _unit(self)
    aligned = start % unit == 0 and (stop % unit == 0 or stop == extent)
    if step != 1 or not aligned or stop <= start:
        return None
    return _of_columns(self, start, stop)


def _of_rows(self: PhiTensor, cut: codec.Cut) -> PhiTensor:
    """Some rows, without the checksum, which is that of the whole."""
    return self.on(codec.cut_rows(self.planes, self.columns, cut), checksum_plane=None)


def _of_columns(self: PhiTensor, start: int, stop: int) -> PhiTensor:
    planes = codec.cut_columns(self.planes, self.columns, self.group_size, start, stop)
    return self.on(planes, columns=stop - start, checksum_plane=None)


def _unit(self: PhiTensor) -> int:
    """The columns that can only be decoded together."""
    return BLOCK if self.is_exact else self.group_size


def _pierce(self: PhiTensor, dim: int, start: int, stop: int, step: int) -> Tensor:
    """Columns as a plain tensor, from no more than the groups or blocks that hold them."""
    stop, unit = max(start, stop), _unit(self)
    if start == stop:
        shape = list(self.shape)
        shape[dim] = 0
        return torch.empty(shape, dtype=self.dtype, device=self.device)
    first = start // unit * unit
    within = _of_columns(self, first, min(-(-stop // unit) * unit, self.columns)).dequantize()
    return aten.slice.Tensor(within, dim, start - first, stop - first, step)
