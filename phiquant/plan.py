"""Which parameters of a model to compress, how, and why not the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from phiquant.codec import DTYPES
from phiquant.config import PhiConfig
from phiquant.tensor import PhiTensor

Filter = Callable[[nn.Module, str], bool]


@dataclass
class Slot:
    """One parameter and every place that holds it.

    config: how to compress it, or None with the ``reason`` why not.
    """

    parameter: nn.Parameter | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    config: PhiConfig | None = None
    reason: str = ""

    @property
    def bytes(self) -> int:
        """Bytes before compression (of the planes, if it is compressed already)."""
        if isinstance(self.parameter, PhiTensor):
            return self.parameter.stored_bytes
        count = self.dtype.itemsize
        for extent in self.shape:
            count *= extent
        return count

    @property
    def stored_bytes(self) -> int:
        """Bytes after compression, from the shape alone."""
        if self.config is None:
            return self.bytes
        layout = self.config.layout(self.shape[-1], 0)
        bits = (layout.index_bits, layout.high_bits, layout.low_bits)
        row = sum(layout.row_bytes(b) for b in bits) + 2 * layout.groups
        return row * (self.bytes // self.dtype.itemsize // self.shape[-1])


def plan(model: nn.Module, config: PhiConfig, filter_fn: Filter | None) -> list[Slot]:
    """Every parameter of ``model`` once, in the order of ``named_parameters``."""
    slots: dict[int, Slot] = {}
    heads = _output_heads(model)
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            slot = slots.get(id(parameter))
            if slot is None:
                slot = slots[id(parameter)] = Slot(
                    parameter, tuple(parameter.shape), parameter.dtype
                )
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
    slot.config = config.for_embedding() if wide else config
    if slot.stored_bytes >= slot.bytes:
        slot.reason = (
            f"would not shrink (rows of {slot.shape[-1]} in groups of {config.group_size})"
        )
        slot.config = None


def why_not_place(module: nn.Module, leaf: str) -> str:
    """Why a parameter of this name in this module cannot be compressed; empty if it can."""
    if isinstance(module, parametrize.ParametrizationList) or leaf in ("weight_g", "weight_v"):
        return "part of a parametrization or weight_norm; remove that first"
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
    if type(parameter.data) is not Tensor:
        return f"a {type(parameter.data).__name__} is not a plain tensor"
    if parameter.dtype not in DTYPES:
        return f"dtype {parameter.dtype} is not bfloat16, float16 or float32"
    if parameter.dim() < 2:
        return "fewer than 2 dimensions"
    if parameter.numel() == 0:
        return "empty"
    return ""


def _output_heads(model: nn.Module) -> set[nn.Module]:
    """A transformers model names its head; it deserves as many bits as the embedding."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return {head} if isinstance(head, nn.Module) else set()
