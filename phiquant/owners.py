"""Where the parameters of a model are held: a shared one in several modules."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn


@dataclass
class Owned:
    """One parameter, by every module and attribute that holds it; it is not held itself."""

    name: str
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def parameter(self) -> nn.Parameter:
        module, leaf = self.owners[0]
        parameter = module._parameters[leaf]
        assert parameter is not None
        return parameter

    def put(self, parameter: nn.Parameter) -> None:
        """Hold ``parameter`` wherever the old one was, which is freed if nothing else holds it."""
        for module, leaf in self.owners:
            setattr(module, leaf, parameter)


def owned_parameters(model: nn.Module) -> list[Owned]:
    """Every parameter of ``model`` once, in the order and by the first of its names.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    owned: dict[int, Owned] = {}
    for prefix, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                owned.setdefault(id(parameter), Owned(name)).owners.append((module, leaf))
    return list(owned.values())
