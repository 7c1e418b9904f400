"""Weights put together: concatenation, and rows of zeros after the last one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from phiquant import codec, encoding
from phiquant.aten.fallback import decode_and_run
from phiquant.codec.layout import BLOCK
from phiquant.tensor import PhiTensor

aten = torch.ops.aten
_FREE = ("columns", "column_shape", "exponent", "fit", "stored_dtype")


@PhiTensor.implements(aten.cat.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Rows, experts and whole groups of columns stay planes; all else is decoded."""
    tensors = args[0]
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    joined = concatenated(tensors, dim)
    return decode_and_run(func, args, kwargs) if joined is None else joined


@PhiTensor.implements(aten.constant_pad_nd.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Zeros after the last row, which tensor-parallel collectives need to get equal shards."""
    self, pad = args[:2]
    value = args[2] if len(args) > 2 else kwargs.get("value", 0)
    dims = [dim for dim in range(len(pad) // 2) if pad[2 * dim] or pad[2 * dim + 1]]
    if value or len(dims) != 1 or pad[2 * dims[0]] or pad[2 * dims[0] + 1] < 0:
        return decode_and_run(func, args, kwargs)
    dim = self.dim() - 1 - dims[0]
    shape = list(self.shape)
    shape[dim] = pad[2 * dims[0] + 1]
    below = zeros(self, shape)
    joined = None if below is None else concatenated([self, below], dim)
    return decode_and_run(func, args, kwargs) if joined is None else joined


def concatenated(tensors: Sequence[Any], dim: int) -> PhiTensor | None:
    """The planes of all tensors as one; None where they do not fit together."""
    if not all(isinstance(tensor, PhiTensor) for tensor in tensors):
        return None
    first: PhiTensor = tensors[0]
    stored = _stored_dim(first, dim)
    if stored is None or not all(_is_like(tensor, first, stored) for tensor in tensors):
        return None
    kept = [tensor for tensor in tensors if tensor.numel()] or [first]
    if stored == first.scale_plane.dim() - 1:
        unit = BLOCK if first.is_exact else first.group_size
        if any(tensor.columns % unit for tensor in kept[:-1]):
            return None
        columns = sum(tensor.columns for tensor in kept)
    else:
        columns = first.columns
    exponent = max(tensor.exponent for tensor in kept)
    parts = [codec.shift_exponent(t.planes, exponent - t.exponent) for t in kept]
    fitting = [part for part in parts if part is not None]
    if len(fitting) < len(parts):
        return None
    planes = codec.join(fitting, [tensor.columns for tensor in kept], stored)
    shape = _column_shape(kept, columns)
    return first.on(
        planes, columns=columns, column_shape=shape, exponent=exponent, checksum_plane=None
    )


def zeros(like: PhiTensor, shape: Sequence[int]) -> PhiTensor | None:
    """Compressed zeros with the layout of ``like``; None if the columns are other ones.

    A lossy tier has no level at zero, so that they decode to the smallest it has, below 1e-7.
    """
    wanted = [*shape[:-2], *shape[:-3:-1]] if like.transposed else list(shape)
    rows, columns = like.scale_plane.dim() - 1, like.column_shape or (like.columns,)
    if tuple(wanted[rows:]) != columns or not torch.Size(wanted).numel():
        return None
    layout = codec.Layout(*like.op_arguments)
    row = torch.zeros(1, like.columns, dtype=like.stored_dtype, device=like.device)
    one = encoding.encode(row, layout, like.fit, None)
    one = codec.cut_rows(one, like.columns, lambda plane: plane.select(0, 0))
    tensor = like.on(codec.repeat_row(one, wanted[:rows]), checksum_plane=None)
    tensor.is_alias = False
    return tensor


def _stored_dim(tensor: PhiTensor, dim: int) -> int | None:
    """The dimension of the planes; None for one of several that the columns unfold to."""
    last = tensor.scale_plane.dim() - 1
    dim = dim + tensor.dim() if dim < 0 else dim
    if tensor.column_shape:
        return dim if dim <= last else None
    return {last: last - 1, last - 1: last}.get(dim, dim) if tensor.transposed else dim


def _is_like(tensor: PhiTensor, first: PhiTensor, stored: int) -> bool:
    """Whether planes are of one layout and shape, but along the stored dimension."""
    for name in tensor.tensor_attribute_names:
        if name not in _FREE and getattr(tensor, name) != getattr(first, name):
            return False
    if tensor.is_exact != first.is_exact or tensor.device != first.device:
        return False
    if tensor.is_exact and tensor.stored_dtype != first.stored_dtype:
        return False
    mine, its = [[*t.scale_plane.shape[:-1], t.columns] for t in (tensor, first)]
    if len(mine) != len(its) or tensor.column_shape[1:] != first.column_shape[1:]:
        return False
    return all(a == b for dim, (a, b) in enumerate(zip(mine, its, strict=True)) if dim != stored)


def _column_shape(tensors: Sequence[PhiTensor], columns: int) -> tuple[int, ...]:
    shape = tensors[0].column_shape
    return (columns // torch.Size(shape[1:]).numel(), *shape[1:]) if shape else ()
