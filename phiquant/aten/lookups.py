"""Rows, and experts, that are looked up by their numbers: no others are decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from phiquant import expert_ops as expert_ops  # registers its ops
from phiquant.aten.fallback import decode_and_run, refuse_write
from phiquant.aten.operands import are_experts, bind, is_matrix
from phiquant.tensor import PhiTensor

aten = torch.ops.aten
_embedding_op = torch.ops.phiquant.embedding.default
_gather_op = torch.ops.phiquant.gather.default


@PhiTensor.implements_torch_function(functional.embedding)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    names = ("input", "weight", "padding_idx", "max_norm")
    indices, weight, _, max_norm = bind(names, args, kwargs)
    if max_norm is not None and isinstance(weight, PhiTensor):
        refuse_write(weight, "embedding with max_norm")
    return _embedding(func, weight, indices, args, kwargs)


@PhiTensor.implements(aten.embedding.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    return _embedding(func, args[0], args[1], args, kwargs)


def _embedding(func: Any, weight: Any, indices: Any, args: Any, kwargs: Any) -> Tensor:
    if not is_matrix(weight, transposed=False):
        return decode_and_run(func, args, kwargs)
    return _look_up(func, weight, indices, args, kwargs)


@PhiTensor.implements(aten.index.Tensor)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Along the first dimension: by numbers, negative ones counted from the end, or by a mask."""
    weight, indices = args
    numbers = indices[0] if isinstance(indices, list | tuple) and len(indices) == 1 else None
    if not isinstance(weight, PhiTensor) or numbers is None:
        return decode_and_run(func, args, kwargs)
    extent = weight.scale_plane.shape[0]
    if numbers.dtype == torch.bool and tuple(numbers.shape) == (extent,):
        numbers = numbers.nonzero().squeeze(-1)
    if numbers.dtype not in (torch.int32, torch.int64):
        return decode_and_run(func, args, kwargs)
    numbers = torch.where(numbers < 0, numbers + extent, numbers)
    return _look_up(func, weight, numbers, args, kwargs)


@PhiTensor.implements(aten.index_select.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    weight, dim, numbers = args
    if not isinstance(weight, PhiTensor) or dim not in (0, -weight.dim()) or numbers.dim() != 1:
        return decode_and_run(func, args, kwargs)
    return _look_up(func, weight, numbers, args, kwargs)


def _look_up(func: Any, weight: PhiTensor, numbers: Any, args: Any, kwargs: Any) -> Tensor:
    experts, dims = are_experts(weight), weight.scale_plane.dim()
    if isinstance(numbers, PhiTensor) or not (experts or (dims == 2 and not weight.transposed)):
        return decode_and_run(func, args, kwargs)
    op = _gather_op if experts else _embedding_op
    try:
        found = op(numbers, *weight.planes, *weight.op_arguments, weight.dtype)
    except ValueError as error:
        raise weight.blame(error) from error
    if weight.column_shape:
        return found.unflatten(-1, weight.column_shape)
    return found.transpose(-2, -1) if weight.transposed else found
