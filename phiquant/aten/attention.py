"""torch's own attention, whose projections are made below the functions that planes answer to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from phiquant.tensor import PhiTensor


@PhiTensor.implements_torch_function(functional.multi_head_attention_forward)
def _(func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
    """With contiguous inputs: torch multiplies others as a batch that repeats the whole weight."""
    args, kwargs = list(args), dict(kwargs)
    copies: dict[int, Tensor] = {}  # the same input twice stays one: that is how torch knows
    for place, name in enumerate(("query", "key", "value")):
        where: Any = (args, place) if place < len(args) else (kwargs, name)
        value = where[0][where[1]]
        where[0][where[1]] = copies.setdefault(id(value), value.contiguous())
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)
