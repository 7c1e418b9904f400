"""Back to a plain model: every compressed weight decoded, one at a time."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from phiquant.memory import FreedMemory
from phiquant.owners import Owned, owned_parameters
from phiquant.tensor import PhiTensor

Model = TypeVar("Model", bound=nn.Module)
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def dequantize_(model: Model, *, dtype: torch.dtype | None = None) -> Model:
    """Put a plain parameter in the place of every compressed weight of ``model``; returns it.

    Shared weights stay shared, and every compressed weight is freed before the next is decoded.
    The new parameters require gradients, like those of a new module. What was a transformers model
    on :class:`phiquant.PhiQuantConfig` is an ordinary one afterwards and is saved as that.

    Args:
        dtype: of the decoded weights; by default every weight keeps the dtype that it claims.

    Raises:
        TypeError: ``model`` is not a module, or ``dtype`` is not bfloat16, float16, float32 or
            float64. Nothing is changed.
        ValueError: hooks of accelerate keep a weight elsewhere; nothing is changed. Or the planes
            of a weight are corrupt: this one and those after it are unchanged.

    >>> import phiquant
    >>> model = nn.Sequential(nn.Linear(128, 64))
    >>> report = phiquant.quantize_(model)
    >>> type(phiquant.dequantize_(model)[0].weight)
    <class 'torch.nn.parameter.Parameter'>
    """
    if dtype is not None and dtype not in _DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in _DTYPES)
        raise TypeError(f"dtype: expected one of {names}, got {dtype!r}")
    places = [place for place in owned_parameters(model) if isinstance(place.parameter, PhiTensor)]
    for place in places:
        _check_here(place)
    freed = FreedMemory()
    for place in places:
        freed.add(_decode(place, dtype))
    freed.give_back()
    _forget_quantizers(model)
    return model


def _decode(place: Owned, dtype: torch.dtype | None) -> int:
    """Decode one weight; returns the bytes of its planes, which are free afterwards."""
    compressed = place.parameter
    assert isinstance(compressed, PhiTensor)
    # A transposed weight decodes to a view; a parameter is laid out as in a new module.
    place.put(nn.Parameter(compressed.dequantize(dtype).contiguous()))
    return compressed.stored_bytes


def _check_here(place: Owned) -> None:
    """Raise ValueError if the weight is on the meta device because a hook brings it when needed."""
    hooked = any(hasattr(module, "_hf_hook") for module, _ in place.owners)
    if hooked and place.parameter.device.type == "meta":
        raise ValueError(
            f"{place.name}: is offloaded by accelerate; call "
            "accelerate.hooks.remove_hook_from_submodules(model) first, which brings it back"
        )


def _forget_quantizers(model: nn.Module) -> None:
    """A transformers model that says it is compressed would be saved as if it were."""
    for module in list(model.modules()):
        # not what a wrapper, such as PEFT's, passes on from the model inside of it
        forget = getattr(vars(module).get("hf_quantizer"), "forget", None)
        if forget is not None:
            forget(module)
