"""Which parameters of a model to compress, how, and why not the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from phiquant.checks import why_not_compressible
from phiquant.config import PhiConfig
from phiquant.layers import storage_of, why_not_place
from phiquant.storage import ROWS_AND_COLUMNS, Storage
from phiquant.tensor import PhiTensor

Filter = Callable[[nn.Module, str], bool]
ALLOWED_GROWTH = 0.1  # bits a weight that an exact form may take more than the original
# Bits a weight of exact forms, offsets and scales counted: 11.3 was measured with 4 + 4 bits on
# MiniLM in bf16, and every further bit of the mantissa adds one, because it is noise.
EXACT_BITS = {torch.bfloat16: 11.3, torch.float16: 14.3, torch.float32: 27.3}


@dataclass
class Slot:
    """One parameter and every place that holds it.

    config: how to compress it, or None with the ``reason`` why not.
    storage: how its dimensions lie in the planes.
    measured_bytes: what the compressed form takes, once there is one whose size was not known.
    """

    parameter: nn.Parameter | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    config: PhiConfig | None = None
    storage: Storage = ROWS_AND_COLUMNS
    reason: str = ""
    measured_bytes: int | None = None

    @classmethod
    def of(cls, parameter: nn.Parameter) -> Slot:
        shape = () if is_lazy(parameter) else tuple(parameter.shape)
        return cls(parameter, shape, parameter.dtype)

    def add(self, module: nn.Module, leaf: str, name: str) -> str:
        """One more place that holds it; returns why it cannot be compressed there, if so."""
        self.owners.append((module, leaf))
        self.names.append(name)
        assert self.parameter is not None
        if reason := why_not_place(module, leaf) or why_not_value(self.parameter):
            return reason
        storage = storage_of(module, leaf)
        if len(self.owners) > 1 and storage != self.storage:
            return f"{type(module).__name__} would store it another way than {self.names[0]}"
        self.storage = storage
        return ""

    @property
    def bytes(self) -> int:
        """Bytes before compression (of the planes, if it is compressed already)."""
        if isinstance(self.parameter, PhiTensor):
            return self.parameter.stored_bytes
        if self.parameter is not None and is_lazy(self.parameter):
            return 0
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes after compression, from the shape alone; of an exact form, an estimate."""
        if self.config is None or self.measured_bytes is not None:
            return self.bytes if self.measured_bytes is None else self.measured_bytes
        rest = 0.0
        if self.config.exact and self.dtype in EXACT_BITS:
            rest = max(0.0, EXACT_BITS[self.dtype] - self.config.bits_per_weight)
        return self.lossy_bytes + math.ceil(rest * math.prod(self.shape) / 8)

    @property
    def lossy_bytes(self) -> int:
        """Bytes of the planes that the shape determines; 0 if there is nothing to compress."""
        if self.config is None:
            return 0
        *rows, columns = self.storage.shape(self.shape)
        layout = self.config.layout(columns, 0)
        bits = (layout.index_bits, layout.high_bits, layout.low_bits)
        row = sum(layout.row_bytes(b) for b in bits) + 2 * layout.groups
        return row * math.prod(rows)


def plan(model: nn.Module, config: PhiConfig, filter_fn: Filter | None) -> list[Slot]:
    """Every parameter of ``model`` once, in the order of ``named_parameters``.

    Raises:
        TypeError: ``model`` is not a module, or ``filter_fn`` cannot be called.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn: expected (module, name) -> bool, got {filter_fn!r}")
    slots: dict[int, Slot] = {}
    heads, adapters = _output_heads(model), _adapters(model)
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            slot = slots.setdefault(id(parameter), Slot.of(parameter))
            name = f"{prefix}.{leaf}" if prefix else leaf
            reason = slot.add(module, leaf, name)
            if module in adapters:
                reason = "of an adapter, which is there to be trained"
            if not reason and filter_fn is not None and not filter_fn(module, prefix):
                reason = "left out by filter_fn"
            slot.reason = slot.reason or (f"{name}: {reason}" if reason else "")
    for slot in slots.values():
        if len(slot.owners) == 1:
            slot.reason = slot.reason.partition(": ")[2]
        _decide(slot, config, heads)
    return list(slots.values())


def plan_one(module: nn.Module, leaf: str, config: PhiConfig) -> Slot:
    """One parameter of a module, as :func:`plan` decides where no other module shares it."""
    parameter = cast(nn.Parameter, getattr(module, leaf))
    slot = Slot.of(parameter)
    slot.reason = slot.add(module, leaf, leaf)
    _decide(slot, config, set())
    return slot


def _decide(slot: Slot, config: PhiConfig, heads: set[nn.Module]) -> None:
    if slot.reason:
        return
    wide = any(isinstance(m, nn.Embedding) or m in heads for m, _ in slot.owners)
    slot.config = config.for_embedding() if wide else config
    slot.reason = why_not_smaller(slot)
    slot.config = None if slot.reason else slot.config


def why_not_value(parameter: Tensor) -> str:
    """Why a parameter's kind of values cannot be compressed; empty if they can."""
    if isinstance(parameter, PhiTensor):
        return "already compressed"
    if is_lazy(parameter):
        return "not initialised yet; run the module once first"
    if type(parameter.data) is not Tensor:
        return f"a {type(parameter.data).__name__} is not a plain tensor"
    return why_not_compressible(parameter)


def why_not_smaller(slot: Slot) -> str:
    """Why compression would not pay, from the shape alone; empty if it does or may."""
    if slot.config is None or slot.lossy_bytes < slot.bytes:
        return ""
    columns = slot.storage.shape(slot.shape)[-1]
    return f"would not shrink (rows of {columns} in groups of {slot.config.group_size})"


def why_it_grew(tensor: PhiTensor, dtype: torch.dtype) -> str:
    """Why an exact form is not worth to keep, with its size; empty if it is.

    Args:
        tensor: the compressed weight.
        dtype: what the weight had; an fp32 weight counts 32 bits though bf16 may be stored.
    """
    raw, bits = 8 * dtype.itemsize, tensor.bits_per_weight
    if not tensor.is_exact or bits <= raw + ALLOWED_GROWTH:
        return ""
    return f"its exact form would grow to {bits:.2f} bits a weight from {raw}"


def _output_heads(model: nn.Module) -> set[nn.Module]:
    """transformers models name their head; it deserves as many bits as the embedding."""
    heads = set()
    for module in model.modules():
        find = getattr(module, "get_output_embeddings", None)
        with suppress(NotImplementedError):
            head = find() if callable(find) else None
            if isinstance(head, nn.Module):
                heads.add(head)
    return heads


def _adapters(model: nn.Module) -> set[nn.Module]:
    """PEFT's layers say which of their children are adapters."""
    adapters: set[nn.Module] = set()
    for module in model.modules():
        for name in getattr(module, "adapter_layer_names", ()):
            child = getattr(module, name, None)
            if isinstance(child, nn.Module):
                adapters.update(child.modules())
    return adapters
