"""Compress a transformers model weight by weight into a store, never holding all of it.

transformers loads as always, renames keys and merges experts, one parameter at a time. What it
puts into the model are parameters without memory; the values are in the store by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantizer

from phiquant.checkpoint.places import places_of
from phiquant.checksum import of_weight
from phiquant.integrations.hf_config import PhiQuantConfig
from phiquant.integrations.hf_loading import Loading
from phiquant.integrations.hf_quantizer import PhiHfQuantizer
from phiquant.plan import Slot
from phiquant.report import Report
from phiquant.tensor import PhiTensor

_METHOD = "phiquant-streamed"


class Store(Protocol):
    """Where weights go, and what an earlier run has left there.

    notes: what was said of a stored tensor, by its name.
    """

    notes: dict[str, dict[str, Any]]

    def __contains__(self, name: str) -> bool: ...
    def read(self, name: str) -> Tensor: ...
    def begin(self, slots: Iterable[Slot]) -> None: ...
    def add(self, name: str, tensor: Tensor, **note: Any) -> None: ...
    def passed(self, slot: Slot, resumed: bool) -> None: ...


@dataclass
class Streamed:
    """A model whose weights are in a store.

    dtype: what plain weights were loaded as.
    ties: for further names of shared tensors the name under which each is stored.
    missing: names of weights that the model has and the checkpoint has not; they are not stored.
    """

    report: Report
    dtype: torch.dtype
    ties: dict[str, str]
    missing: list[str]


def stream(folder: Path, architecture: str, config: PhiQuantConfig, store: Store) -> Streamed:
    """Compress the model in a folder into a store.

    Args:
        folder: of a transformers model with safetensors files.
        architecture: the name of the model's class in transformers.
        config: how to compress.
        store: filled with every tensor of the model's state that is not there yet.

    Raises:
        ValueError: transformers has no such class; a weight cannot be compressed or does not fit.
        OSError: the store cannot be written, or a file not be read.
    """
    settings = _StreamedConfig(config, store)
    try:
        model, info = class_of(architecture).from_pretrained(
            folder, quantization_config=settings, dtype="auto", output_loading_info=True
        )
    except _Stop as stop:
        raise stop.reason from stop
    missing = set(info["missing_keys"])
    ties = _store_rest(model, store, missing)
    return Streamed(model.hf_quantizer.report, model.dtype, ties, sorted(missing))


def class_of(architecture: str) -> Any:
    """The model class of this name.

    Raises:
        ValueError: this transformers has none.
    """
    found = getattr(transformers, architecture, None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise ValueError(
            f"config.json: architectures: transformers {transformers.__version__} has no model "
            f"{architecture!r}; a newer one may have it (code that comes with a checkpoint is "
            "not run)"
        )
    return found


class _Stop(BaseException):
    """Ends a load at once: transformers collects every Exception and goes on."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _StreamedConfig(PhiQuantConfig):
    """Brings the store to the quantizer, past the copies that transformers makes of a config."""

    def __init__(self, config: PhiQuantConfig, store: Store) -> None:
        self.__dict__ |= config.__dict__
        self.quant_method, self.plain, self.store = _METHOD, config, store

    def __deepcopy__(self, memo: object) -> _StreamedConfig:
        return self

    def to_dict(self) -> dict[str, Any]:
        return self.plain.to_dict()


@register_quantizer(_METHOD)
class _StreamedQuantizer(PhiHfQuantizer):
    def preprocess_model(self, model: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().preprocess_model(model, dtype=dtype, **kwargs)
        settings = cast(_StreamedConfig, self.quantization_config)
        loading = cast(Loading, self._loading)
        self._loading = cast(Loading, _StreamedLoading(loading, settings.store))


class _StreamedLoading:
    """A :class:`Loading` that keeps nothing.

    Args:
        loading: decides and compresses.
        store: where to.
    """

    def __init__(self, loading: Loading, store: Store) -> None:
        self.loading, self.store = loading, store
        self.waiting = loading.waiting | {
            name for name, slot in loading.slots.items() if slot.dtype == loading.dtype
        }
        self._shared: dict[int, tuple[Tensor, nn.Parameter]] = {}
        store.begin({id(slot): slot for slot in loading.slots.values()}.values())

    def element_size(self, name: str, parameter: Tensor) -> float:
        return self.loading.element_size(name, parameter)

    def finish(self, model: nn.Module) -> Report:
        return self.loading.finish(model)

    def compress(self, name: str, weight: Tensor, place: Tensor | None = None) -> Tensor:
        """Store a weight that was just read, and return a parameter of its shape without memory.

        One that does not fit its place is returned as it is for transformers to report.
        """
        self.waiting.discard(name)
        slot = self.loading.slots[name]
        if tuple(weight.shape) != slot.shape:
            return weight
        try:
            return self._shared_or_stored(name, slot, weight)
        except Exception as error:
            raise _Stop(error) from error

    def _shared_or_stored(self, name: str, slot: Slot, weight: Tensor) -> nn.Parameter:
        """A checkpoint may hold a shared weight twice, or another weight under a shared name."""
        if len(slot.names) == 1:
            return self._stored(name, slot, weight)
        bits = of_weight(weight.contiguous())
        first = self._shared.get(id(slot))
        if first is not None and torch.equal(bits, first[0]):
            return first[1]
        self._shared[id(slot)] = bits, self._stored(name, slot, weight)
        return self._shared[id(slot)][1]

    def _stored(self, name: str, slot: Slot, weight: Tensor) -> nn.Parameter:
        resumed = name in self.store
        if resumed:
            tensor: Tensor = self.store.read(name)
        else:
            tensor = self.loading.compress(name, weight)
            if self.loading.refused:
                raise ValueError(f"{self.loading.refused[0]} (--skip leaves modules as they are)")
            note = {"error": self.loading.errors.get(name), "grown": self._grown(name)}
            self.store.add(name, tensor, **{k: v for k, v in note.items() if v not in (None, "")})
        self._recall(name, self.store.notes.get(name, {}))
        self.loading.waiting.discard(name)
        self.store.passed(slot, resumed)
        self.loading.freed.add(weight.nbytes)
        return _without_memory(tensor)

    def _grown(self, name: str) -> str:
        return self.loading.grown.get(name.rpartition(".")[0], "")

    def _recall(self, name: str, note: Mapping[str, Any]) -> None:
        if "error" in note:
            self.loading.errors[name] = note["error"]
        if "grown" in note:
            self.loading.grown[name.rpartition(".")[0]] = note["grown"]


def _without_memory(tensor: Tensor) -> nn.Parameter:
    """A frozen parameter of the same kind and shape on the meta device."""
    if not isinstance(tensor, PhiTensor):
        return nn.Parameter(torch.empty_like(tensor, device="meta"), requires_grad=False)
    empty = tensor._apply_fn_to_data(lambda plane: torch.empty_like(plane, device="meta"))
    return nn.Parameter(empty, requires_grad=False)


def _store_rest(model: nn.Module, store: Store, missing: set[str]) -> dict[str, str]:
    """Store what is in memory, and return for further names of shared tensors the stored one."""
    places = places_of(model)
    names: dict[int, list[str]] = {}
    for name, place in places.items():
        names.setdefault(id(place.tensor), []).append(name)
    ties: dict[str, str] = {}
    for held in names.values():
        stored = next((name for name in held if name in store), None)
        tensor = places[held[0]].tensor
        if stored is None and tensor.is_meta:
            raise ValueError(f"{held[0]}: transformers did not load it")
        if stored is None and not missing.intersection(held):
            tied = set(getattr(model, "all_tied_weights_keys", None) or ())
            stored = min(held, key=lambda name: name in tied)
            store.add(stored, tensor)
        if stored is not None:
            ties |= {name: stored for name in held if name != stored}
    return ties
