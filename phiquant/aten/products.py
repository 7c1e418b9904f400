"""Products with a compressed matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch.nn import functional

from phiquant import graph_ops
from phiquant.aten.experts import batched
from phiquant.aten.fallback import decode_and_run
from phiquant.aten.operands import autocast, bind, has_tangents, is_matrix, run_plainly
from phiquant.tensor import PhiTensor

aten = torch.ops.aten
_linear_op = torch.ops.phiquant.linear.default
_int8_op = torch.ops.phiquant.linear_int8.default
_graph_op = torch.ops.phiquant._linear.default


def _linear(x: Tensor, weight: PhiTensor, bias: Tensor | None = None) -> Tensor:
    if has_tangents():
        matrix = weight.t() if weight.transposed else weight
        return decode_and_run(functional.linear, (x, matrix, bias), {})
    x, bias = autocast(x, bias)
    if _is_compiling():
        return _linear_of_a_graph(x, weight, bias)
    op = _linear_op if weight.activation is None else _int8_op
    try:
        if torch.is_grad_enabled():
            return op(x, *weight.planes, bias, *weight.op_arguments)
        # An op's autograd formula is Python: stepping into it for nothing costs as much as a
        # small product. torch.library passes it by in the same way.
        with torch._C._AutoDispatchBelowAutograd():
            return op(x, *weight.planes, bias, *weight.op_arguments)
    except ValueError as error:
        raise weight.blame(error) from error


def _is_compiling() -> bool:
    """Before torch 2.13 its own flag is not set where a graph is traced through a subclass."""
    return torch.compiler.is_compiling() or TracingContext.try_get() is not None


def _linear_of_a_graph(x: Tensor, weight: PhiTensor, bias: Tensor | None) -> Tensor:
    """Whether something is trained, a graph is guarded on; a program that is exported is not."""
    int8 = weight.activation is not None
    trained = x.requires_grad or (bias is not None and bias.requires_grad)
    if torch.compiler.is_exporting() or (trained and torch.is_grad_enabled()):
        op = _int8_op if int8 else _linear_op
        return op(x, *weight.planes, bias, *weight.op_arguments)
    columns, layout = weight.op_arguments[0], weight.op_arguments[1:]
    return _graph_op(x, *weight.planes, bias, columns, graph_ops.pack(*layout, int8))


@PhiTensor.implements_torch_function(functional.linear)
@PhiTensor.implements(aten.linear.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, bias = bind(("input", "weight", "bias"), args, kwargs)
    if not is_matrix(weight, transposed=False) or isinstance(x, PhiTensor):
        return decode_and_run(func, args, kwargs)
    return _linear(x, weight, bias)


@PhiTensor.implements_torch_function([torch.matmul, Tensor.matmul, Tensor.__matmul__])
@PhiTensor.implements(aten.mm.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    left, right = bind(("input", "other"), args, kwargs)
    if (product := batched(left, right)) is not None:
        return product
    if is_matrix(right, transposed=True) and not isinstance(left, PhiTensor):
        return _linear(left, right)
    if is_matrix(left, transposed=False) and not isinstance(right, PhiTensor):
        if right.dim() == 1:
            return _linear(right, left)
        if right.dim() == 2:
            return _linear(right.t(), left).t()
    if is_matrix(right, transposed=False) and _is_backward() and not isinstance(left, PhiTensor):
        return left @ right.dequantize(left.dtype)
    return run_plainly(func, args, kwargs)


def _is_backward() -> bool:
    """Whether autograd asks, for the gradient of an input: that decodes in every product."""
    return torch._C._current_graph_task_id() != -1


@PhiTensor.implements_torch_function(torch.addmm)
@PhiTensor.implements(aten.addmm.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    if len(args) == 3 and not kwargs and is_matrix(args[2], transposed=True):
        bias, x, weight = args
        if not isinstance(x, PhiTensor) and not isinstance(bias, PhiTensor) and bias.dim() == 1:
            return _linear(x, weight, bias)
    return run_plainly(func, args, kwargs)
