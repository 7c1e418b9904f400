"""Products with compressed experts: batches of matrices, and tokens grouped by expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from phiquant import expert_ops as expert_ops  # registers its ops
from phiquant.aten.fallback import implements_by_name
from phiquant.aten.operands import are_experts, autocast, bind, has_tangents, is_plain, run_plainly
from phiquant.tensor import PhiTensor

aten = torch.ops.aten
_grouped_ops = {
    True: torch.ops.phiquant.grouped_linear.default,
    False: torch.ops.phiquant.grouped_linear_backward.default,
}


def _grouped(x: Tensor, weight: PhiTensor, offsets: Tensor) -> Tensor:
    """``x[tokens of an expert] @ weight[expert]``, whichever way the experts are stored."""
    x, _ = autocast(x)
    op = _grouped_ops[weight.transposed]
    try:
        return op(x, *weight.planes, offsets, *weight.op_arguments)
    except ValueError as error:
        raise weight.blame(error) from error


def batched(left: Any, right: Any) -> Tensor | None:
    """``left @ right`` for a batch of matrices, one side of which are experts; None for others."""
    if has_tangents():
        return None
    if are_experts(left) and is_plain(right):
        product = batched(right.transpose(-2, -1), left.transpose(-2, -1))
        return None if product is None else product.transpose(-2, -1)
    if not (are_experts(right) and is_plain(left) and left.dim() == 3):
        return None
    experts, tokens, width = left.shape
    if (experts, width) != tuple(right.shape[:2]):
        return None
    offsets = torch.arange(1, experts + 1, device=left.device) * tokens
    product = _grouped(left.reshape(-1, width), right, offsets)
    return product.view(experts, tokens, -1)


@PhiTensor.implements_torch_function([torch.bmm, Tensor.bmm])
@PhiTensor.implements(aten.bmm.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    product = None if "out" in kwargs else batched(*bind(("input", "mat2"), args, kwargs))
    return run_plainly(func, args, kwargs) if product is None else product


@PhiTensor.implements_torch_function([torch.baddbmm, Tensor.baddbmm])
@PhiTensor.implements(aten.baddbmm.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    plain = len(args) == 3 and not kwargs and is_plain(args[0])
    product = batched(*args[1:]) if plain else None
    return run_plainly(func, args, kwargs) if product is None else args[0] + product


_functions = [torch._grouped_mm, getattr(functional, "grouped_mm", None)]  # newer in torch


@PhiTensor.implements_torch_function([function for function in _functions if function])
@PhiTensor.implements(aten._grouped_mm.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, offsets, bias, dtype = bind(
        ("mat_a", "mat_b", "offs", "bias", "out_dtype"), args, kwargs
    )
    if not (_fits(x, weight, offsets) and bias is None and dtype in (None, x.dtype)):
        return run_plainly(func, args, kwargs)
    return _grouped(x, weight, offsets)


@implements_by_name("transformers::grouped_mm_fallback")
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, offsets = bind(("input", "weight", "offs"), args, kwargs)
    if not _fits(x, weight, offsets):
        return run_plainly(func, args, kwargs)
    return _grouped(x, weight, offsets)


def _fits(x: Any, weight: Any, offsets: Any) -> bool:
    plain = is_plain(x) and x.dim() == 2 and is_plain(offsets)
    return plain and are_experts(weight) and not has_tangents()
