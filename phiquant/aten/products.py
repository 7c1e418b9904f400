"""Products with a compressed matrix, and rows looked up in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional

from phiquant.aten.fallback import decode_and_run, refuse_write
from phiquant.tensor import PhiTensor

aten = torch.ops.aten
_linear_op = torch.ops.phiquant.linear.default
_embedding_op = torch.ops.phiquant.embedding.default


def _linear(x: Tensor, weight: PhiTensor, bias: Tensor | None = None) -> Tensor:
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    try:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return _linear_op(x, *weight.planes, bias, *weight.op_arguments)
        # An op's autograd formula is Python: stepping into it for nothing costs as much as a
        # small product. torch.library passes it by in the same way.
        with torch._C._AutoDispatchBelowAutograd():
            return _linear_op(x, *weight.planes, bias, *weight.op_arguments)
    except ValueError as error:
        raise weight.blame(error) from error


def _is_matrix(tensor: object, *, transposed: bool) -> TypeGuard[PhiTensor]:
    # The plane is asked for its dimensions because asking the subclass costs a dispatch.
    return (
        isinstance(tensor, PhiTensor)
        and tensor.transposed == transposed
        and tensor.scale_plane.dim() == 2
    )


@PhiTensor.implements_torch_function(functional.linear)
@PhiTensor.implements(aten.linear.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, bias = _bind(("input", "weight", "bias"), args, kwargs)
    if not _is_matrix(weight, transposed=False) or isinstance(x, PhiTensor):
        return decode_and_run(func, args, kwargs)
    return _linear(x, weight, bias)


@PhiTensor.implements_torch_function([torch.matmul, Tensor.matmul, Tensor.__matmul__])
@PhiTensor.implements(aten.mm.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    left, right = _bind(("input", "other"), args, kwargs)
    if _is_matrix(right, transposed=True) and not isinstance(left, PhiTensor):
        return _linear(left, right)
    if _is_matrix(left, transposed=False) and not isinstance(right, PhiTensor):
        if right.dim() == 1:
            return _linear(right, left)
        if right.dim() == 2:
            return _linear(right.t(), left).t()
    if func is aten.mm.default:
        return decode_and_run(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


@PhiTensor.implements(aten.addmm.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    bias, x, weight = args
    plain = not isinstance(x, PhiTensor) and not isinstance(bias, PhiTensor)
    if plain and bias.dim() == 1 and not kwargs and _is_matrix(weight, transposed=True):
        return _linear(x, weight, bias)
    return decode_and_run(func, args, kwargs)


@PhiTensor.implements_torch_function(functional.embedding)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    names = ("input", "weight", "padding_idx", "max_norm")
    indices, weight, _, max_norm = _bind(names, args, kwargs)
    if max_norm is not None and isinstance(weight, PhiTensor):
        refuse_write(weight, "embedding with max_norm")
    return _embedding(func, weight, indices, args, kwargs)


@PhiTensor.implements(aten.embedding.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    return _embedding(func, args[0], args[1], args, kwargs)


@PhiTensor.implements(aten.index.Tensor)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Rows by their numbers, negative ones counted from the end."""
    weight, indices = args
    rows = indices[0] if isinstance(indices, list | tuple) and len(indices) == 1 else None
    if rows is None or rows.dtype not in (torch.int32, torch.int64):
        return decode_and_run(func, args, kwargs)
    if _is_matrix(weight, transposed=False):
        rows = torch.where(rows < 0, rows + weight.scale_plane.shape[0], rows)
    return _embedding(func, weight, rows, args, kwargs)


@PhiTensor.implements(aten.index_select.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    weight, dim, rows = args
    if dim not in (0, -2) or isinstance(rows, PhiTensor) or rows.dim() != 1:
        return decode_and_run(func, args, kwargs)
    return _embedding(func, weight, rows, args, kwargs)


def _embedding(func: Any, weight: Any, indices: Any, args: Any, kwargs: Any) -> Tensor:
    if not _is_matrix(weight, transposed=False) or isinstance(indices, PhiTensor):
        return decode_and_run(func, args, kwargs)
    try:
        return _embedding_op(indices, *weight.planes, *weight.op_arguments, weight.dtype)
    except ValueError as error:
        raise weight.blame(error) from error


def _bind(names: Sequence[str], args: Sequence[Any], kwargs: Any) -> list[Any]:
    """Positional or keyword arguments by name; a missing one is None."""
    if not kwargs and len(args) == len(names):
        return list(args)
    return [args[i] if i < len(args) else kwargs.get(n) for i, n in enumerate(names)]
