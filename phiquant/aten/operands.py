"""What operations ask of their operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from phiquant.aten.fallback import decode_and_run
from phiquant.tensor import PhiTensor


def is_matrix(tensor: object, *, transposed: bool) -> TypeGuard[PhiTensor]:
    """A compressed matrix, whose rows (or columns, if transposed) are stored as rows."""
    # The plane is asked for its dimensions because asking the subclass costs a dispatch.
    return (
        isinstance(tensor, PhiTensor)
        and tensor.transposed == transposed
        and tensor.scale_plane.dim() == 2
        and not tensor.column_shape
    )


def are_experts(tensor: object) -> TypeGuard[PhiTensor]:
    """Compressed matrices, one an expert, that may be transposed."""
    return (
        isinstance(tensor, PhiTensor) and tensor.scale_plane.dim() == 3 and not tensor.column_shape
    )


def is_plain(tensor: object) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and not isinstance(tensor, PhiTensor)


def has_tangents() -> bool:
    """Whether forward-mode differentiation is on, which would pass a compressed product by."""
    return forward_ad._current_level >= 0


def autocast(x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The input and the bias of a product in the dtype of autocast, where it is on."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), None if bias is None else bias.to(dtype)


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Any) -> list[Any]:
    """Positional or keyword arguments by name; a missing one is None."""
    if not kwargs and len(args) == len(names):
        return list(args)
    return [args[i] if i < len(args) else kwargs.get(n) for i, n in enumerate(names)]


def run_plainly(func: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
    """What has no compressed form here: a function goes on to its operations, these decode."""
    if isinstance(func, OpOverload):
        return decode_and_run(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **(kwargs or {}))
