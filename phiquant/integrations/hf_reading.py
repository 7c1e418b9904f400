"""Read a compressed checkpoint while transformers loads the rest of it.

transformers renames keys and places what it reads; of a compressed weight it sees the header
alone. The planes are read here, at the tier that was asked for, on mapped memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter

from phiquant.checkpoint import Checkpoint, CheckpointError
from phiquant.checkpoint.names import HEADER, PLANES, split_key
from phiquant.integrations.hf_parallel import device_of, held, is_shared, settle
from phiquant.memory import FreedMemory
from phiquant.quantize import leave_nested_path
from phiquant.report import Compressed, Report, Skipped
from phiquant.sharding import local_shard
from phiquant.tensor import PhiTensor

_PLANE_KEY = rf"(?:^|\.)_[^.]+_(?:{'|'.join([HEADER, *PLANES])})$"


class Reading:
    """One load of one compressed checkpoint into one model.

    Args:
        model: the model on the meta device; its report of unexpected keys will leave planes out.
        files: of the checkpoint.
        tier: how deep to read, or None for all that is there.
        quantizer: what transformers asks whether it may cast what it reads.

    Raises:
        CheckpointError: a file is damaged, or holds other planes than it says.
    """

    def __init__(
        self, model: nn.Module, files: Sequence[str], tier: str | None, quantizer: object
    ) -> None:
        self.checkpoint = Checkpoint(files, tier)
        self.quantizer = quantizer
        self.read: dict[str, str] = {}  # parameter: name in the checkpoint
        ignored: Any = model._keys_to_ignore_on_load_unexpected
        model._keys_to_ignore_on_load_unexpected = {*(ignored or ()), _PLANE_KEY}  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> Reading:
        """transformers copies a converter for every parameter; what they read from is one."""
        return self

    def converters(self) -> list[HeaderConverter]:
        """One for every name of a parameter within its module, "weight" above all."""
        leaves = {name.rpartition(".")[2] for name in self.checkpoint.headers}
        return [
            HeaderConverter(_at_segment(leaf), leaf, [_Header(self)]) for leaf in sorted(leaves)
        ]

    def element_size(self, name: str, parameter: Tensor) -> float:
        """Bytes of one weight at the tier that is read."""
        for known in (name, name.partition(".")[2]):  # with or without the base model's prefix
            if known in self.checkpoint.headers:
                return self.checkpoint.stored_bytes(known) / parameter.numel()
        return parameter.element_size()

    def parameter(self, name: str, stored_as: str, model: nn.Module, device: Any) -> nn.Parameter:
        """The parameter ``name`` of ``model``, or this rank's part of it, on ``device``.

        Raises:
            CheckpointError: it has another shape in the model; or two stored weights are this one.
        """
        place = model.get_parameter(name)
        file = self.checkpoint.files[0]
        if self.read.setdefault(name, stored_as) != stored_as:
            both = f"{stored_as} and {self.read[name]}"
            raise CheckpointError(f"{file}: {both} are both the model's {name}")
        tensor = self.checkpoint.read(stored_as)
        assert isinstance(tensor, PhiTensor)
        if tensor.shape != place.shape:
            got, wanted = tuple(tensor.shape), tuple(place.shape)
            raise CheckpointError(f"{file}: {stored_as}: the model wants {wanted}, it has {got}")
        tensor = tensor._with(dtype=place.dtype)
        tensor.fqn = name
        return _parameter(_on_this_rank(tensor, place), device)

    def finish(self, model: nn.Module) -> Report:
        """What was read; the errors of a weight are not known to a checkpoint."""
        leave_nested_path(model)
        settle(model)
        FreedMemory().give_back()
        names: dict[int, list[str]] = {}
        for name, weight in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(weight), []).append(name)
        report = Report()
        for weight in model.parameters():
            places, weight = tuple(names[id(weight)]), held(weight)
            shape = tuple(weight.shape)  # of this rank's part, if ranks share it
            if isinstance(weight, PhiTensor):
                weight.fqn = places[0]
                before = weight.numel() * weight.dtype.itemsize
                report.compressed.append(Compressed(places, shape, before, weight.stored_bytes))
            else:
                report.skipped.append(Skipped(places, shape, weight.nbytes, "not compressed"))
        return report


class HeaderConverter(WeightConverter):
    """Stands for a header among transformers' conversions, and gives the compressed parameter."""

    __slots__ = ()

    def convert(
        self, layer_name: str, model: Any = None, *args: Any, **kwargs: Any
    ) -> dict[str, nn.Parameter]:
        """``{name: parameter}`` for the parameter of this name.

        Raises:
            CheckpointError: as :meth:`Reading.parameter`.
        """
        (operation,) = self.operations
        place = model.get_parameter(layer_name)
        # What a rank's part of a header would be has no meaning, and cannot always be cut.
        device = device_of(place) if is_shared(place) else self._device()
        keys = sorted(self.layer_targets[layer_name])
        reading: Reading = operation.reading  # type: ignore[attr-defined]
        for key in keys:
            split = split_key(key)
            assert split is not None
            parameter = reading.parameter(layer_name, split[0], model, device)
        return {layer_name: parameter}

    def _device(self) -> torch.device | None:
        """Where transformers put the header."""
        found = self.materialize_tensors()
        devices = [tensor.device for tensors in found.values() for tensor in tensors]
        return devices[0] if devices else None

    def was_used(self) -> bool:
        """Nothing is to be undone when the model is saved: it is saved compressed."""
        return False


class _Header(ConversionOps):
    """What a converter needs to have; :class:`HeaderConverter` does not run it."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.hf_quantizer = reading.quantizer  # or a header would be cast to the model's dtype

    def __deepcopy__(self, memo: object) -> _Header:
        return self

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return input_dict


def _at_segment(leaf: str) -> str:
    """A pattern for the header of a parameter of this name and of none that ends with it."""
    return rf"(?<![^.])_{re.escape(leaf)}_{HEADER}"


def _on_this_rank(tensor: PhiTensor, place: Tensor) -> Tensor:
    """The part of the weight that this rank holds; the whole where ranks do not share it."""
    if not is_shared(place):
        return tensor
    return local_shard(tensor, place)


def _parameter(tensor: Tensor, device: Any) -> nn.Parameter:
    moved = tensor if device is None or tensor.device == device else tensor.to(device)
    parameter = nn.Parameter(moved, requires_grad=False)
    if isinstance(tensor, PhiTensor):
        parameter.fqn = tensor.fqn  # type: ignore[attr-defined]
    return parameter
