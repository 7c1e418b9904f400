"""Views: a transpose, rows and whole groups of columns, leading dimensions regrouped.

What cuts through a group or mixes the columns with other dimensions decodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from phiquant.aten.fallback import decode_and_run
from phiquant.tensor import PhiTensor

aten = torch.ops.aten


@PhiTensor.implements([aten.t.default, aten.transpose.int, aten.permute.default])
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    self = args[0]
    order = list(range(self.dim()))
    swapped = [*order[:-2], *order[:-3:-1]]
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
    if shape == list(self.shape):
        return return_and_correct_aliasing(func, args, kwargs, self._with())
    if self.transposed or len(shape) < 2 or shape[-1] != self.columns:
        # reshape() hands over a clone, which it takes to be contiguous: a transpose is not
        contiguous = func is aten._unsafe_view.default
        return decode_and_run(torch.reshape if contiguous else func, args, kwargs)
    regrouped = self._apply_fn_to_data(lambda plane: plane.view(*shape[:-1], plane.shape[-1]))
    return return_and_correct_aliasing(func, args, kwargs, regrouped)


def _inferred(self: PhiTensor, shape: Sequence[int]) -> list[int]:
    """The shape with a -1 replaced, if the rest allows one."""
    known = math.prod(extent for extent in shape if extent != -1)
    if known == 0 or self.numel() % known:
        return list(shape)
    return [self.numel() // known if extent == -1 else extent for extent in shape]


@PhiTensor.implements(aten.slice.Tensor)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    self, dim, start, stop, step = args + (0, None, None, 1)[len(args) - 1 :]
    cut = _cut(self, _stored_dim(self, dim), start, stop, step)
    if cut is None:
        return decode_and_run(func, args, kwargs)
    return return_and_correct_aliasing(func, args, kwargs, cut)


@PhiTensor.implements([aten.split.Tensor, aten.split_with_sizes.default])
def _(func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
    self, sizes, dim = (*args, 0)[:3]
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
    stored = _stored_dim(self, dim)
    last = self.scale_plane.dim() - 1
    if stored == last:
        return decode_and_run(func, args, kwargs)
    picked = self._apply_fn_to_data(lambda plane: plane.select(stored, place))
    if stored == last - 1:  # one row of each: no rows are left that a transpose could swap
        picked = picked._with(transposed=False)
    return return_and_correct_aliasing(func, args, kwargs, picked)


def _dim(self: PhiTensor, dim: int) -> int:
    dims = self.scale_plane.dim()
    if not -dims <= dim < dims:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-dims}, {dims - 1}], got {dim})"
        )
    return dim % dims


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
    """Rows, or columns from one group's border to another; None where it is no border."""
    extent = _extent(self, stored)
    start, stop, _ = slice(start, stop).indices(extent)
    if stored < self.scale_plane.dim() - 1:
        return self._apply_fn_to_data(lambda p: aten.slice.Tensor(p, stored, start, stop, step))
    aligned = start % self.group_size == 0 and (stop % self.group_size == 0 or stop == extent)
    if step != 1 or not aligned or stop <= start:
        return None
    first, last = start // self.group_size, -(-stop // self.group_size)
    groups = self.scale_plane.shape[-1]

    def of_groups(plane: Tensor) -> Tensor:
        width = plane.shape[-1] // groups
        return plane[..., first * width : last * width]

    return self._apply_fn_to_data(of_groups)._with(columns=stop - start)
