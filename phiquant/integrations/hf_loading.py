"""Compress the weights of a transformers model one by one while they are loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps

from phiquant.integrations.hf_config import PhiQuantConfig
from phiquant.integrations.hf_disk import DiskWeights
from phiquant.integrations.hf_parallel import compress_shard, held, is_shared, settle
from phiquant.memory import FreedMemory
from phiquant.plan import Slot, plan
from phiquant.quantize import compress_parameter, quantize_
from phiquant.report import Compressed, Report, Skipped
from phiquant.tensor import PhiTensor, check_weight

log = logging.getLogger("phiquant")

_LEFT_OUT = "left out by filter_fn"
_LARGE = 16384


class Loading:
    """One load of one model: what to compress, what was done, and the report of it.

    Which parameters, and with how many bits, is decided by :func:`phiquant.plan.plan` as for
    :func:`phiquant.quantize_`, so both give the same planes.

    Args:
        model: the model on the meta device, before its weights are loaded.
        config: how to compress.
        dtype: what floating-point weights are loaded as.
        disk: which weights go to disk, if any do.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PhiQuantConfig,
        dtype: torch.dtype,
        disk: DiskWeights | None = None,
    ) -> None:
        self.config, self.dtype = config, dtype
        self.disk = disk or DiskWeights(None)
        self.left_out: dict[str, str] = {}
        self.errors: dict[str, float | None] = {}
        self.grown: dict[str, str] = {}
        self.refused: list[str] = []
        self.freed = FreedMemory()
        with _tied(model):
            slots = plan(model, config.phi_config, self._is_wanted)
        self.slots = {name: slot for slot in slots for name in slot.names}
        self.waiting = {
            name
            for name, slot in self.slots.items()
            # a parameter of another dtype is loaded as that, and compressed in the end
            if slot.config is not None and slot.dtype == dtype
        }
        self._check_patterns(model)

    def element_size(self, name: str, parameter: Tensor) -> float:
        """Bytes of one weight of this parameter once it is compressed."""
        slot = self.slots.get(name)
        if slot is None or slot.config is None or not parameter.numel():
            return parameter.element_size()
        return slot.stored_bytes / parameter.numel()

    def compress(self, name: str, weight: Tensor, place: Tensor | None = None) -> Tensor:
        """The parameter to put in the place of a weight that was just read from a file.

        Where ranks share ``place``, the parameter that is there now, the weight is a rank's part.

        A weight that does not fit its place is returned as it is for transformers to report; one
        that cannot be compressed, too: :meth:`finish` raises for all of them.
        """
        slot = self.slots.get(name)
        if slot is None or name not in self.waiting:
            return weight
        self.waiting.discard(name)
        shape = tuple(held(place).shape) if is_shared(place) else slot.shape
        if slot.config is None or tuple(weight.shape) != shape:
            return weight
        try:
            if is_shared(place):
                outcome = compress_shard(weight, slot, name, place)
            else:
                check_weight(weight, name, slot.config.exact)
                outcome = compress_parameter(weight, slot.config, name, slot.storage)
        except (TypeError, ValueError) as error:
            self.refused.append(str(error))
            return weight
        if outcome.parameter is None:
            self.grown[_module(name)] = outcome.reason
            return weight
        self.errors[name] = outcome.relative_error
        self.freed.add(weight.nbytes)
        return self.disk.put(name, outcome.parameter)

    def finish(self, model: nn.Module) -> Report:
        """Compress what could not be while loading, and report on every parameter.

        Raises:
            ValueError: a weight cannot be compressed, or has not the shape that the model wants.
        """
        if self.refused:
            raise ValueError(
                "\n".join(sorted(self.refused))
                + "\n(modules_to_not_convert leaves modules as they are)"
            )
        self._check_shapes(model)
        self._leave_out_fresh(model)
        slots = plan(model, self.config.phi_config, self._is_wanted)
        if any(slot.config is not None for slot in slots):
            rest = quantize_(model, self.config.phi_config, self._is_wanted, progress=False)
            self.errors |= {entry.names[0]: entry.relative_error for entry in rest.compressed}
            planned = {slot.names[0] for slot in slots if slot.config is not None}
            self.grown |= {
                _module(entry.names[0]): entry.reason
                for entry in rest.skipped
                if entry.names[0] in planned
            }
            slots = plan(model, self.config.phi_config, self._is_wanted)
        settle(model)
        self.disk.put_rest(model, done=set(self.errors))
        self.freed.give_back()
        report = self._report(slots)
        _log(report, set(self.left_out.values()))
        return report

    def _is_wanted(self, module: nn.Module, name: str) -> bool:
        if name not in self.left_out and (pattern := self.config.leaves_out(name)):
            self.left_out[name] = f"left out by modules_to_not_convert ({pattern!r})"
        return name not in self.left_out and name not in self.grown

    def _check_patterns(self, model: nn.Module) -> None:
        """A pattern that names nothing is a slip that would compress what was to be left."""
        names = [name for name, _ in model.named_modules()]
        for pattern in self.config.modules_to_not_convert or ():
            alone = PhiQuantConfig(modules_to_not_convert=pattern)
            if not any(map(alone.leaves_out, names)):
                log.warning("modules_to_not_convert: %r matches no module of this model", pattern)

    def _check_shapes(self, model: nn.Module) -> None:
        for name, slot in self.slots.items():
            got = tuple(model.get_parameter(name).shape)
            if slot.config is not None and got != slot.shape:
                raise ValueError(f"{name}: the model wants shape {slot.shape}, the file has {got}")

    def _leave_out_fresh(self, model: nn.Module) -> None:
        """A new head that the file does not have is there to be trained."""
        for name, slot in self.slots.items():
            loaded = getattr(model.get_parameter(name), "_is_hf_initialized", False)
            if slot.config is not None and not loaded:
                self.left_out[_module(name)] = "not in the checkpoint: freshly made"

    def _report(self, slots: list[Slot]) -> Report:
        report = Report()
        for slot in slots:
            names, weight = tuple(slot.names), held(slot.parameter)
            if not isinstance(weight, PhiTensor):
                report.skipped.append(Skipped(names, slot.shape, slot.bytes, self._reason(slot)))
                continue
            weight.fqn = names[0]  # which of several names it had in the file does not matter
            error = next((self.errors[name] for name in names if name in self.errors), None)
            before = weight.numel() * weight.dtype.itemsize
            shape = tuple(weight.shape)  # of this rank's part, if ranks share it
            report.compressed.append(Compressed(names, shape, before, weight.stored_bytes, error))
        return report

    def _reason(self, slot: Slot) -> str:
        """Why a parameter was left alone, in the words of what kept it from being wanted."""
        modules = [_module(name) for name in slot.names]
        grown = next((self.grown[m] for m in modules if m in self.grown), "")
        why = next((self.left_out[m] for m in modules if m in self.left_out), _LEFT_OUT)
        return grown or slot.reason.replace(_LEFT_OUT, why)


class CompressOp(ConversionOps):
    """The step that transformers runs on every weight that it read, after its own."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, list[Tensor]]:
        """``{parameter name: weight or [weight]}`` to ``{parameter name: [parameter]}``."""
        loaded: dict[str, list[Tensor]] = {}
        model = kwargs.get("model")
        while input_dict:
            name, weight = input_dict.popitem()
            weight = weight[0] if isinstance(weight, list) else weight
            place = None if model is None else model.get_parameter_or_buffer(name)
            loaded[name] = [self.loading.compress(name, weight, place)]
        return loaded


@contextmanager
def _tied(model: nn.Module) -> Iterator[None]:
    """Tie for a moment what transformers will tie after loading, so that a plan sees it."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loose: list[tuple[str, nn.Parameter]] = []
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        if target in parameters and source in parameters:
            loose.append((target, parameters[target]))
            _put(model, target, parameters[source])
    try:
        yield
    finally:
        for target, parameter in loose:
            _put(model, target, parameter)


def _module(name: str) -> str:
    """The module's name in a parameter's."""
    return name.rpartition(".")[0]


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, parameter)


def _log(report: Report, wanted: set[str]) -> None:
    log.info("%s", str(report).partition("\n")[0])
    groups: dict[str, list[Skipped]] = {}
    for entry in report.skipped:
        matrix = len(entry.shape) > 1 or entry.bytes >= _LARGE
        if matrix and not any(entry.reason.endswith(reason) for reason in wanted):
            groups.setdefault(entry.reason.rpartition(": ")[2], []).append(entry)
    for reason, entries in groups.items():
        size = sum(entry.bytes for entry in entries) / 1e6
        more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
        log.warning("left alone, %.1f MB: %s%s: %s", size, entries[0].names[0], more, reason)
