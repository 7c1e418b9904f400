"""Which parameters of a model to compress, how, and why not the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from phiquant.checks import why_not_compressible
from phiquant.config import PhiConfig
from phiquant.tensor import PhiTensor

Filter = Callable[[nn.Module, str], bool]
ALLOWED_GROWTH = 0.1  # bits a weight that an exact form may take more than the original
# Bits a weight of exact forms, offsets and scales counted: 11.3 was measured with 4 + 4 bits on
# MiniLM in bf16, and every further bit of the mantissa adds one, because it is noise.
EXACT_BITS = {torch.bfloat16: 11.3, torch.float16: 14.3, torch.float32: 27.3}
_RECOMPUTED = ("weight_g", "weight_v", "weight_orig")  # of weight_norm, spectral_norm and pruning


@dataclass
class Slot:
    """One parameter and every place that holds it.

    config: how to compress it, or None with the ``reason`` why not.
    measured_bytes: what the compressed form takes, once there is one whose size was not known.
    """

    parameter: nn.Parameter | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    config: PhiConfig | None = None
    reason: str = ""
    measured_bytes: int | None = None

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
        layout = self.config.layout(self.shape[-1], 0)
        bits = (layout.index_bits, layout.high_bits, layout.low_bits)
        row = sum(layout.row_bytes(b) for b in bits) + 2 * layout.groups
        return row * math.prod(self.shape[:-1])


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
    heads = _output_heads(model)
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            slot = slots.get(id(parameter))
            if slot is None:
                shape = () if is_lazy(parameter) else tuple(parameter.shape)
                slot = slots[id(parameter)] = Slot(parameter, shape, parameter.dtype)
            name = f"{prefix}.{leaf}" if prefix else leaf
            slot.owners.append((module, leaf))
            slot.names.append(name)
            reason = why_not_place(module, leaf) or why_not_value(parameter)
            if not reason and filter_fn is not None and not filter_fn(module, prefix):
                reason = "left out by filter_fn"
            slot.reason = slot.reason or (f"{name}: {reason}" if reason else "")
    for slot in slots.values():
        _decide(slot, config, heads)
    return list(slots.values())


def _decide(slot: Slot, config: PhiConfig, heads: set[nn.Module]) -> None:
    if slot.reason:
        if len(slot.owners) == 1:
            slot.reason = slot.reason.partition(": ")[2]
        return
    wide = any(isinstance(m, nn.Embedding) or m in heads for m, _ in slot.owners)
    chosen = config.for_embedding() if wide else config
    slot.reason = why_not_smaller(slot.shape, slot.dtype, chosen)
    slot.config = None if slot.reason else chosen


def why_not_place(module: nn.Module, leaf: str) -> str:
    """Why a parameter of this name in this module cannot be compressed; empty if it can."""
    if isinstance(module, parametrize.ParametrizationList) or leaf in _RECOMPUTED:
        return "the weight is computed from it (parametrization, weight_norm, pruning); remove that"
    if not isinstance(module, nn.Linear | nn.Embedding):
        return f"{type(module).__name__} is not supported yet"
    if leaf != "weight":
        return f"a {leaf} is not a weight matrix"
    if parametrize.is_parametrized(module):
        return "the module is parametrized; remove the parametrization first"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "an embedding with max_norm writes to its weight"
    return ""


def why_not_value(parameter: Tensor) -> str:
    """Why a parameter's kind of values cannot be compressed; empty if they can."""
    if isinstance(parameter, PhiTensor):
        return "already compressed"
    if is_lazy(parameter):
        return "not initialised yet; run the module once first"
    if type(parameter.data) is not Tensor:
        return f"a {type(parameter.data).__name__} is not a plain tensor"
    return why_not_compressible(parameter)


def why_not_smaller(shape: tuple[int, ...], dtype: torch.dtype, config: PhiConfig) -> str:
    """Why compression would not pay, from the shape alone; empty if it does or may."""
    if Slot(None, shape, dtype, config=config).lossy_bytes < Slot(None, shape, dtype).bytes:
        return ""
    return f"would not shrink (rows of {shape[-1]} in groups of {config.group_size})"


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
