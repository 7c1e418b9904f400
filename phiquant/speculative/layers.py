"""Passes whose decoder layers run compiled: one code for all that are alike.

A whole model takes as long to compile as all of its layers do, which are the same layer with other
weights. A call of compiled code takes its time on the host, so this is for passes that become CUDA
graphs: the host's part is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from phiquant.early_kernels import early_kernels, options
from phiquant.tensor import PhiTensor

if TYPE_CHECKING:
    from phiquant.integrations.hf_cache import SharedCache, SharedLayer

_MOST_KINDS = 4  # that are worth compiling one by one
_INTERNAL = frozenset(nn.Module().__dict__)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Planes of remainders differ in their sizes from layer to layer, and ops look at these themselves.
# Small kernels that do not wait for each other become one: rotations, keys and values.
_OPTIONS = {"size_asserts": False, "alignment_asserts": False, "combo_kernels": True}


class LayerCache:
    """What a layer takes for the model's cache: its own keys and values, whatever its number."""

    def __init__(self, layer: SharedLayer) -> None:
        self.layer = layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self.layer.update(key_states, value_states)


class CompiledLayers:
    """Decoder layers of a model, whose calls inside :meth:`running` are compiled ones.

    Args:
        layers: of one model, in their order.
        cache: of the passes.
    """

    def __init__(self, layers: Sequence[nn.Module], cache: SharedCache) -> None:
        self.layers = layers
        kinds = [_kind(layer) for layer in layers]
        given = {**_OPTIONS, **options()}
        codes = {kind: compiled_alone(_layer, given) for kind in dict.fromkeys(kinds)}
        self.calls = [
            partial(_call, codes[kind], layer, LayerCache(cache.layers[number]))  # type: ignore[arg-type]
            for number, (layer, kind) in enumerate(zip(layers, kinds, strict=True))
        ]

    @classmethod
    def of(cls, model: nn.Module, cache: SharedCache) -> CompiledLayers | None:
        """Those of a model, if there is one for each layer of the cache and most are alike."""
        names = set(getattr(model, "_no_split_modules", None) or ())
        layers = [m for m in model.modules() if type(m).__name__ in names]
        hooked = any(
            "forward" in vars(m) or any(getattr(m, hooks) for hooks in _HOOKS)
            for layer in layers
            for m in layer.modules()
        )
        known = all("past_key_values" in signature(type(m).forward).parameters for m in layers)
        if hooked or not known or len(layers) != len(cache.layers):
            return None
        return cls(layers, cache) if len(set(map(_kind, layers))) <= _MOST_KINDS else None

    @contextmanager
    def running(self) -> Iterator[None]:
        for layer, call in zip(self.layers, self.calls, strict=True):
            layer.__dict__["forward"] = call
        try:
            with early_kernels():  # where a first call compiles
                yield
        finally:
            for layer in self.layers:
                del layer.__dict__["forward"]


def compiled_alone(function: Any, options: dict[str, Any] | None = None) -> Callable[..., Any]:
    """A function, compiled for the operands that it is called with first, and without guards.

    Of its own code, so that no other is looked up in its place: what it was compiled for never
    changes, and nothing has to be looked at in every call.
    """
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    given: Any = {"guard_filter_fn": _no_guards, **(options or {})}
    made: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=False, options=given)
    return made


def _no_guards(guards: Sequence[Any]) -> list[bool]:
    return [False] * len(guards)


def _layer(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def _call(code: Any, layer: nn.Module, cache: LayerCache, *args: Any, **kwargs: Any) -> Any:
    return code(layer, args, {**kwargs, "past_key_values": cache})


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """What compiled code of a layer depends on: equal for layers that differ in their weights."""
    found: list[Any] = []
    for name, module in layer.named_modules():
        found.append((name, type(module)))
        for key, value in vars(module).items():
            if key not in _INTERNAL and key != "layer_idx":
                found.append((name, key, _said(value)))
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            found.append((name, key, _form(tensor)))
    return tuple(found)


def _said(value: Any) -> Any:
    """A value that can be compared; of an object, which one it is."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, dict):
        return tuple((key, _said(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_said, value))
    return id(value)


def _form(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    looks = tensor.shape, tensor.stride(), tensor.dtype, tensor.device
    if not isinstance(tensor, PhiTensor):
        return looks
    planes, attributes = tensor.__tensor_flatten__()
    return looks, tuple(planes), tuple((k, _said(v)) for k, v in attributes.items())
