"""Convolutions with a compressed weight, which is decoded for the call.

The weight of a layer is small beside what it is slid over, and kernels for convolutions are the
device's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from phiquant.aten.fallback import decode_and_run
from phiquant.tensor import PhiTensor

aten = torch.ops.aten


@PhiTensor.implements(
    [
        aten.convolution.default,
        # what inference mode leaves whole
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv3d.default,
        aten.conv3d.padding,
        aten.conv_transpose1d.default,
        aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
    ]
)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, *rest = args
    return _with_decoded(func, weight, (x,), tuple(rest), args, kwargs)


@PhiTensor.implements(aten.convolution_backward.default)
def _(func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
    """Gradients of the input and the bias; a compressed weight has none."""
    gradient, x, weight, *rest = args
    return _with_decoded(func, weight, (gradient, x), tuple(rest), args, kwargs)


def _with_decoded(
    func: Callable[..., Any],
    weight: Any,
    before: tuple[Any, ...],
    after: tuple[Any, ...],
    args: Any,
    kwargs: Any,
) -> Any:
    others = (*before, *after, *kwargs.values())
    if not isinstance(weight, PhiTensor) or any(isinstance(t, PhiTensor) for t in others):
        return decode_and_run(func, args, kwargs)
    return func(*before, weight.dequantize(), *after, **kwargs)
