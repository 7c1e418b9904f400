"""Compress safetensors files that belong to no transformers model: the names tell what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from phiquant.checkpoint.files import Stored, open_files
from phiquant.checks import why_not_compressible
from phiquant.cli.outline import add_entry
from phiquant.cli.source import Source
from phiquant.cli.store import Store
from phiquant.config import PhiConfig
from phiquant.memory import FreedMemory
from phiquant.plan import Slot, why_not_smaller
from phiquant.quantize import compress_parameter
from phiquant.report import Report
from phiquant.storage import Storage


def plan_files(source: Source, config: PhiConfig, skip: Sequence[str]) -> list[Slot]:
    """What becomes of every tensor of the files, by name, shape and dtype alone.

    Compressed is every floating-point tensor with at least 2 dimensions whose name ends in
    "weight". All dimensions but the first are its columns, as of a convolution.
    """
    stored, _ = open_files(source.files)
    return [_slot(where, config, skip) for where in stored.values()]


def stream_files(source: Source, slots: list[Slot], store: Store) -> Report:
    """Compress the tensors of the files one by one into a store.

    Raises:
        ValueError: a weight cannot be compressed.
        OSError: a file cannot be read or written.
    """
    stored, _ = open_files(source.files)
    freed, report = FreedMemory(source.files), Report()
    store.begin(slots)
    for slot in slots:
        name = slot.names[0]
        resumed = name in store
        if not resumed:
            _add(store, slot, stored[name].map())
        add_entry(report, slot, store.notes.get(name, {}))
        store.passed(slot, resumed)
        freed.add(slot.bytes)
    freed.give_back()
    return report


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches whole dotted segments anywhere in a module's name.

    >>> matches("self_attn", "layers.0.self_attn.q_proj"), matches("attn", "layers.0.self_attn")
    (True, False)
    """
    return re.search(rf"(?:^|\.)(?:{pattern.removesuffix('.weight')})(?:\.|$)", name) is not None


def _slot(where: Stored, config: PhiConfig, skip: Sequence[str]) -> Slot:
    tensor = where.map()
    slot = Slot(None, where.shape, tensor.dtype, names=[where.key], config=config)
    slot.reason = _why_not(where.key, tensor, skip)
    if not slot.reason:
        slot.storage = Storage(column_dims=len(where.shape) - 1)
        slot.reason = why_not_smaller(slot)
    if slot.reason:
        slot.config = None
    return slot


def _why_not(name: str, tensor: Tensor, skip: Sequence[str]) -> str:
    module, _, leaf = name.rpartition(".")
    if not leaf.endswith("weight"):
        return "its name does not end in 'weight'"
    if any(matches(pattern, module) for pattern in skip):
        return "left out by --skip"
    return why_not_compressible(tensor)


def _add(store: Store, slot: Slot, weight: Tensor) -> None:
    name = slot.names[0]
    if slot.config is None:
        store.add(name, weight)
        return
    outcome = compress_parameter(weight, slot.config, name, slot.storage)
    if outcome.parameter is None:
        store.add(name, weight, grown=outcome.reason)
    else:
        tensor = outcome.parameter.data
        bytes_ = tensor.stored_bytes  # type: ignore[attr-defined]
        store.add(name, tensor, error=outcome.relative_error, bytes=bytes_)
