"""Where planes lie: addresses and pinned memory, and the bits of values that are nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from phiquant.tensor import PhiTensor

aten = torch.ops.aten


@PhiTensor.implements_torch_function(Tensor.data_ptr)
def _(func: Callable[..., int], types: Any, args: Any, kwargs: Any) -> int:
    """The address of the index plane: equal for tensors that share planes.

    Other libraries tell tied weights by it; 0 for all would make one weight of different ones.
    """
    return args[0].index_plane.data_ptr()


@PhiTensor.implements(aten.is_pinned.default)
def _(func: Callable[..., bool], types: Any, args: Any, kwargs: Any) -> bool:
    self = args[0]
    planes = (*self.planes, self.checksum_plane)
    return all(func(plane, *args[1:], **kwargs) for plane in planes if plane is not None)


@PhiTensor.implements(aten._pin_memory.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    return args[0]._apply_fn_to_data(lambda plane: func(plane, *args[1:], **kwargs))


@PhiTensor.implements_torch_function(Tensor.tolist)
def _(func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
    return func(args[0].dequantize())


@PhiTensor.implements_torch_function(Tensor.numpy)
def _(func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> NoReturn:
    _refuse_values(args[0], "numpy()", ".dequantize().numpy()")


@PhiTensor.implements(aten.view.dtype)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    self, dtype = args[:2]
    if dtype != self.dtype:
        _refuse_values(self, f"view({dtype})", f".dequantize().view({dtype})")
    return return_and_correct_aliasing(func, args, kwargs, self._with())


def _refuse_values(tensor: PhiTensor, operation: str, instead: str) -> NoReturn:
    raise RuntimeError(
        f"{tensor.describe()}: {operation} needs the values of a weight in memory, and a "
        f"compressed one has planes instead; use {instead}. If accelerate was to offload it to "
        "disk, which writes plain values: phiquant.offload_(model, folder) keeps the planes in "
        'mapped files; then offload to "cpu"'
    )
