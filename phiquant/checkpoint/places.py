"""Where a module holds its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass
class Place:
    """Where a module holds a tensor, under one of possibly several names."""

    module: nn.Module
    leaf: str
    tensor: Tensor

    def put(self, value: Tensor) -> None:
        """Replace it; a parameter stays one."""
        if self.leaf in self.module._buffers:
            self.module._buffers[self.leaf] = value
        else:
            setattr(self.module, self.leaf, value)


def places_of(model: nn.Module) -> dict[str, Place]:
    """Every parameter and persistent buffer of a module by its name, shared ones several times.

    Raises:
        ValueError: a parameter is lazy and was not initialised.
        TypeError: a module has extra state, which may be anything.
    """
    places: dict[str, Place] = {}
    for prefix, module in model.named_modules():
        own: dict[str, Any] = dict(module._parameters)
        own |= {
            leaf: buffer
            for leaf, buffer in module._buffers.items()
            if leaf not in module._non_persistent_buffers_set
        }
        for leaf, tensor in own.items():
            name = f"{prefix}.{leaf}" if prefix else leaf
            if tensor is not None and is_lazy(tensor):
                raise ValueError(f"{name}: not initialised yet; run the module once first")
            if tensor is not None:
                places[name] = Place(module, leaf, tensor)
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise TypeError(f"{prefix or 'model'}: has extra state, which is not stored; remove it")
    return places


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Parameters go to the meta device when a module takes them; buffers stay, to be computed."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not is_lazy(parameter) and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
