"""Compress the weights of a model in place."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torchao.quantization.transform_module import register_quantize_module_handler
from tqdm import tqdm

from phiquant.checks import check_weight
from phiquant.checksum import in_background, part_size
from phiquant.config import PhiConfig
from phiquant.memory import FreedMemory
from phiquant.plan import (
    Filter,
    Slot,
    plan,
    plan_one,
    why_it_grew,
)
from phiquant.report import Compressed, Report, Skipped
from phiquant.storage import ROWS_AND_COLUMNS, Storage
from phiquant.tensor import PhiTensor

_SHORT = 1.0  # seconds within which a model is compressed without a bar, unless one is wanted
log = logging.getLogger("phiquant")
# Called with what was compressed in place, by libraries that models belong to.
after_compression: list[Callable[[nn.Module, PhiConfig, Report], None]] = []


class Outcome(NamedTuple):
    """What became of one weight.

    parameter: the compressed weight, frozen; None if the weight is left alone.
    relative_error: ``|decoded - original| / |original|``; 0.0 for an exact weight.
    reason: why it is left alone.
    """

    parameter: nn.Parameter | None
    relative_error: float | None = None
    reason: str = ""


def quantize_(
    model: nn.Module,
    config: PhiConfig | None = None,
    filter_fn: Filter | None = None,
    *,
    progress: bool | None = None,
) -> Report:
    """Compress the weights of ``model`` in place.

    Those of Linear, Embedding, Conv, ConvTranspose and MultiheadAttention modules, and in
    transformers models those of Conv1D modules and of experts that are kept in one parameter.

    Parameters that are shared stay shared. Embeddings and a transformers model's output head keep
    at least 4 deviation bits. Each original is freed before the next is compressed. Calling it
    again changes nothing that is compressed, and goes on with the rest if it was interrupted.

    With ``PhiConfig(exact=True)`` every bit of a weight is compared before its original is freed,
    and a weight whose exact form would take 0.1 bits a weight more than the original is left alone
    and reported.

    Args:
        model: any module; other layers and parameters are left alone and listed in the report.
        config: how; the default is ``PhiConfig()``.
        filter_fn: ``(module, name) -> bool``, asked for every module whose weight could be
            compressed; False leaves it alone. A shared weight is compressed if all its modules may.
        progress: show a progress bar; the default shows one on a terminal only, after a second.

    Raises:
        TypeError: an argument is not of its type. Nothing is changed.
        ValueError: a weight is on the meta device, or holds NaN or infinity and is not to be
            exact. Nothing is changed.
        RuntimeError: a weight did not come back bit for bit (a defect of phiquant or the machine);
            this one and those after it are unchanged.

    >>> model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> print(quantize_(model).bits_per_weight)
    8.25
    """
    config = PhiConfig.checked(config)
    slots = plan(model, config, filter_fn)
    for slot in slots:
        if slot.config is not None and slot.parameter is not None:
            check_weight(slot.parameter, slot.names[0], slot.config.exact)
    report, freed = Report(), FreedMemory()
    with _progress_bar(slots, progress) as bar, in_background():
        while slots:
            slot = slots.pop(0)
            planned = slot.config is not None
            on_host = slot.parameter is not None and slot.parameter.is_cpu
            _add(report, slot, _compress(slot))
            if planned:
                freed.add(slot.bytes if on_host else 0)
                bar.update(slot.bytes)
    freed.give_back()
    leave_nested_path(model)
    for tell in after_compression:
        tell(model, config, report)
    log.info("%s", report.summary)
    return report


def _progress_bar(slots: list[Slot], progress: bool | None) -> tqdm:
    """A bar on a terminal, if it takes long; elsewhere, if wanted, a line every ten seconds."""
    return tqdm(
        total=sum(slot.bytes for slot in slots if slot.config is not None),
        unit="B",
        unit_scale=True,
        desc="phiquant: compress",
        disable=None if progress is None else not progress,
        mininterval=0.1 if sys.stderr.isatty() else 10,
        delay=_SHORT if progress is None else 0,
    )


def preview(
    model: nn.Module, config: PhiConfig | None = None, filter_fn: Filter | None = None
) -> Report:
    """What :func:`quantize_` would do, from shapes alone; works on the meta device too.

    Sizes of exact forms are estimates, and said to be.
    """
    report = Report()
    for slot in plan(model, PhiConfig.checked(config), filter_fn):
        _add(report, slot, None)
    return report


def _compress(slot: Slot) -> float | None:
    """Replace a parameter in all its places, unless it would grow; returns the relative error."""
    if slot.config is None or slot.parameter is None:
        return None
    parameter, slot.parameter = slot.parameter, None  # this was the last name of the original
    outcome = compress_parameter(parameter, slot.config, slot.names[0], slot.storage)
    if outcome.parameter is None:
        slot.parameter, slot.config, slot.reason = parameter, None, outcome.reason
        return None
    for module, leaf in slot.owners:
        setattr(module, leaf, outcome.parameter)
    if slot.config.exact:
        slot.measured_bytes = cast(PhiTensor, outcome.parameter.data).stored_bytes
    return outcome.relative_error


def leave_nested_path(model: nn.Module) -> None:
    """Keep nn.TransformerEncoder from nested tensors, which only its fused path can take."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(parameter, PhiTensor) for parameter in module.parameters()
        ):
            module.use_nested_tensor = False


def compress_parameter(
    weight: Tensor, config: PhiConfig, name: str, storage: Storage = ROWS_AND_COLUMNS
) -> Outcome:
    """Compress ``weight`` and hold the result against it; an exact form may be too large to keep.

    Raises:
        TypeError, ValueError: as :meth:`PhiTensor.from_hp`.
        RuntimeError: an exact form does not decode to the weight.
    """
    tensor = PhiTensor.from_hp(weight, config, name=name, **storage._asdict())
    if reason := why_it_grew(tensor, weight.dtype):
        return Outcome(None, reason=reason)
    if config.exact:
        check_every_bit(weight.detach(), tensor)
        error = 0.0
    else:
        error = relative_error(weight.detach(), tensor)
    return Outcome(nn.Parameter(tensor, requires_grad=False), error)


def check_every_bit(original: Tensor, compressed: PhiTensor) -> None:
    """Raise RuntimeError unless ``compressed`` decodes to ``original``, bit for bit."""
    for part, decoded in _parts(original, compressed, original.dtype):
        bits = (part.contiguous().view(torch.uint8), decoded.contiguous().view(torch.uint8))
        if not torch.equal(*bits):
            raise RuntimeError(
                f"{compressed.describe()}: the exact form does not decode to the original, which "
                "is left as it was; please report this, with the weight and the CPU if you can"
            )


def relative_error(original: Tensor, compressed: Tensor) -> float:
    """``|decoded - original| / |original|`` in the Frobenius norm, in fp32; 0 for a zero weight."""
    norms: list[Tensor] = []
    for part, decoded in _parts(original, cast(PhiTensor, compressed), torch.float32):
        part = part.float()
        norms += (torch.linalg.vector_norm(of) for of in (decoded.sub_(part), part))
    found = torch.stack(norms).tolist()  # a GPU is waited for once
    error, size = (sum(norm**2 for norm in found[which::2]) for which in (0, 1))
    return math.sqrt(error / size) if size > 0 else 0.0


def _parts(
    original: Tensor, compressed: PhiTensor, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time of the original as it is stored, and the same rows decoded."""
    if compressed.scale_plane.dim() > 2:  # experts
        for place in range(original.shape[0]):
            yield from _parts(original[place], cast(PhiTensor, compressed[place]), dtype)
        return
    if compressed.transposed:
        original, compressed = original.t(), cast(PhiTensor, compressed.t())
    step = max(1, part_size(original.device) // compressed.columns)
    for start in range(0, original.shape[0], step):
        part = cast(PhiTensor, compressed[start : start + step])
        yield original[start : start + step], part.dequantize(dtype)


def _add(report: Report, slot: Slot, error: float | None) -> None:
    names = tuple(slot.names)
    if slot.config is None:
        report.skipped.append(Skipped(names, slot.shape, slot.bytes, slot.reason))
        return
    stored, estimated = slot.stored_bytes, slot.config.exact and slot.measured_bytes is None
    entry = Compressed(names, slot.shape, slot.bytes, stored, error, estimated)
    report.compressed.append(entry)


@register_quantize_module_handler(PhiConfig)
def _transform(
    module: nn.Module, config: PhiConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    """torchao's handler: one module, without the care for shared parameters."""
    parameter = getattr(module, parameter_name, None)
    if not isinstance(parameter, nn.Parameter) or isinstance(parameter, PhiTensor):
        return module
    name = f"{type(module).__name__}({module.extra_repr()}).{parameter_name}"
    slot = plan_one(module, parameter_name, config)
    outcome = Outcome(None, reason=slot.reason)
    if slot.config is not None:
        outcome = compress_parameter(parameter, slot.config, name, slot.storage)
    if outcome.parameter is None:
        log.warning("%s is left alone: %s", name, outcome.reason)
    else:
        setattr(module, parameter_name, outcome.parameter)
    return module
