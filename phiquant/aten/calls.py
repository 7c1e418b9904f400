"""The short way of ``nn.Linear``'s call to the compiled product, for eager mode on the CPU.

The op with all planes takes seventeen arguments, and torch passes them through its autograd
formula, which is Python: for a small product that takes longer than the product. Here a weight's
planes are prepared at its first call, and handed over as one tensor; autograd gets a formula with a
fifth of the arguments. Whatever looks at operations (a mode, a tracer, functorch, autocast) is
given the op itself, by the long way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from phiquant import ops
from phiquant.codec import Planes
from phiquant.plane_tensor import PREPARED
from phiquant.tensor import PhiTensor

_prepare = torch.ops.phiquant._prepare.default
# Not the overload, which looks for script objects among its arguments first.
_product = torch.ops.phiquant._prepared_linear.default._op
_PLAIN = (Tensor, nn.Parameter)

_is_compiling = torch.compiler.is_compiling
_count_modes = torch._C._len_torch_dispatch_stack
_is_autocast = torch._C._is_any_autocast_enabled
_functorch = torch._C._functorch.peek_interpreter_stack
_is_tracing = torch._C._is_tracing
_is_grad = torch.is_grad_enabled


class _Trained(torch.autograd.Function):
    """The product with the gradients that the op's own formula gives."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, prepared: Tensor, planes: Planes, layout: Any
    ) -> Tensor:
        ctx.save_for_backward(*planes)
        ctx.layout, ctx.dtype = layout, x.dtype
        product: Tensor = _product(x, prepared, bias)
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_input, of_bias = ops.linear_gradients(
            gradient if ctx.needs_input_grad[0] else None,
            gradient if ctx.needs_input_grad[1] else None,
            *ctx.saved_tensors,
            *ctx.layout,
            ctx.dtype,
        )
        return of_input, of_bias, None, None, None


_trained_product = _Trained.apply


def prepared_linear(args: Any, kwargs: Any) -> Tensor | None:
    """The product of ``functional.linear(*args)``, or None if it has to go the long way."""
    if (
        _is_compiling()
        or kwargs
        or len(args) > 3
        or _count_modes()
        or _is_autocast()
        or _functorch() is not None
        or _is_tracing()
        or forward_ad._current_level >= 0
    ):
        return None
    x, weight, bias = args if len(args) == 3 else (*args, None)
    if type(x) is not Tensor or type(weight) is not PhiTensor or not x.is_cpu:
        return None
    if bias is not None and type(bias) not in _PLAIN:
        return None
    kept = weight.__dict__.get(PREPARED)
    if kept is None:
        kept = weight.__dict__[PREPARED] = _prepared(weight)
    if not kept:
        return None
    prepared, planes, layout = kept
    try:
        if _is_grad() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return _trained_product(x, bias, prepared, planes, layout)
        product: Tensor = _product(x, prepared, bias)
        return product
    except ValueError as error:
        raise weight.blame(error) from error


def _prepared(weight: PhiTensor) -> tuple[Any, ...]:
    """What stands for the planes, the planes and the layout; empty if they go the long way."""
    present = [plane for plane in weight.planes if plane is not None]
    plain = all(type(plane) is Tensor and plane.is_cpu for plane in present)
    matrix = weight.scale_plane.dim() == 2 and not weight.transposed and not weight.column_shape
    if not (ops.compiled and plain and matrix):
        return ()
    planes, layout = weight.planes, weight.op_arguments
    return _prepare(*planes, *layout, weight.activation is not None), planes, layout
