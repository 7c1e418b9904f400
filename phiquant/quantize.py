"""Compress the weights of a model in place."""

from __future__ import annotations

import logging
import math
import sys
from typing import cast

import torch
from torch import Tensor, nn
from torchao.quantization.transform_module import register_quantize_module_handler
from tqdm import tqdm

from phiquant.checks import check_weight
from phiquant.config import PhiConfig
from phiquant.memory import FreedMemory
from phiquant.plan import Filter, Slot, plan, why_not_place, why_not_smaller, why_not_value
from phiquant.report import Compressed, Report, Skipped
from phiquant.tensor import PhiTensor

log = logging.getLogger("phiquant")
_PART = 1 << 22  # weights that are decoded at a time to measure the error


def quantize_(
    model: nn.Module,
    config: PhiConfig | None = None,
    filter_fn: Filter | None = None,
    *,
    progress: bool | None = None,
) -> Report:
    """Compress the Linear and Embedding weights of ``model`` in place.

    Parameters that are shared stay shared. Embeddings and a transformers model's output head keep
    at least 4 deviation bits. Each original is freed before the next is compressed. Calling it
    again changes nothing that is compressed, and goes on with the rest if it was interrupted.

    Args:
        model: any module; other layers and parameters are left alone and listed in the report.
        config: how; the default is ``PhiConfig()``.
        filter_fn: ``(module, name) -> bool``, asked for every module whose weight could be
            compressed; False leaves it alone. A shared weight is compressed if all its modules may.
        progress: show a progress bar; the default shows one on a terminal only.

    Raises:
        TypeError: an argument is not of its type. Nothing is changed.
        ValueError: a weight holds NaN or infinity, or is on the meta device. Nothing is changed.

    >>> model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> print(quantize_(model).bits_per_weight)
    8.25
    """
    slots = plan(model, PhiConfig.checked(config), filter_fn)
    for slot in slots:
        if slot.config is not None and slot.parameter is not None:
            check_weight(slot.parameter, slot.names[0])
    report, freed = Report(), FreedMemory()
    with _progress_bar(slots, progress) as bar:
        while slots:
            slot = slots.pop(0)
            _add(report, slot, _compress(slot))
            if slot.config is not None:
                freed.add(slot.bytes)
                bar.update(slot.bytes)
    freed.give_back()
    _leave_nested_path(model)
    log.info("%s", report.summary)
    return report


def _progress_bar(slots: list[Slot], progress: bool | None) -> tqdm:
    """A bar on a terminal; elsewhere, if it is wanted, a line every ten seconds."""
    return tqdm(
        total=sum(slot.bytes for slot in slots if slot.config is not None),
        unit="B",
        unit_scale=True,
        desc="phiquant: compress",
        disable=None if progress is None else not progress,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )


def preview(
    model: nn.Module, config: PhiConfig | None = None, filter_fn: Filter | None = None
) -> Report:
    """What :func:`quantize_` would do, from shapes alone; works on the meta device too."""
    report = Report()
    for slot in plan(model, PhiConfig.checked(config), filter_fn):
        _add(report, slot, None)
    return report


def _compress(slot: Slot) -> float | None:
    """Replace a parameter in all its places; returns the relative error."""
    if slot.config is None or slot.parameter is None:
        return None
    parameter, slot.parameter = slot.parameter, None  # this was the last name of the original
    compressed = compress_parameter(parameter, slot.config, slot.names[0])
    for module, leaf in slot.owners:
        setattr(module, leaf, compressed)
    return relative_error(parameter.detach(), compressed.data)


def _leave_nested_path(model: nn.Module) -> None:
    """Keep nn.TransformerEncoder from nested tensors, which only its fused path can take."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(parameter, PhiTensor) for parameter in module.parameters()
        ):
            module.use_nested_tensor = False


def compress_parameter(weight: Tensor, config: PhiConfig, name: str) -> nn.Parameter:
    """A frozen parameter that holds the compressed ``weight``."""
    return nn.Parameter(PhiTensor.from_hp(weight, config, name=name), requires_grad=False)


def relative_error(original: Tensor, compressed: Tensor) -> float:
    """``|decoded - original| / |original|`` in the Frobenius norm, in fp32; 0 for a zero weight."""
    rows = max(1, _PART * original.shape[0] // original.numel())
    error = size = 0.0
    for start in range(0, original.shape[0], rows):
        part = original[start : start + rows].float()
        decoded = cast(PhiTensor, compressed[start : start + rows]).dequantize(torch.float32)
        error += torch.linalg.vector_norm(decoded.sub_(part)).item() ** 2
        size += torch.linalg.vector_norm(part).item() ** 2
    return math.sqrt(error / size) if size > 0 else 0.0


def _add(report: Report, slot: Slot, error: float | None) -> None:
    names = tuple(slot.names)
    if slot.config is None:
        report.skipped.append(Skipped(names, slot.shape, slot.bytes, slot.reason))
    else:
        report.compressed.append(
            Compressed(names, slot.shape, slot.bytes, slot.stored_bytes, error)
        )


@register_quantize_module_handler(PhiConfig)
def _transform(
    module: nn.Module, config: PhiConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    """torchao's handler: one module, without the care for shared parameters."""
    parameter = getattr(module, parameter_name, None)
    if not isinstance(parameter, nn.Parameter) or isinstance(parameter, PhiTensor):
        return module
    name = f"{type(module).__name__}({module.extra_repr()}).{parameter_name}"
    wide = config.for_embedding() if isinstance(module, nn.Embedding) else config
    reason = (
        why_not_place(module, parameter_name)
        or why_not_value(parameter)
        or why_not_smaller(tuple(parameter.shape), parameter.dtype, wide)
    )
    if reason:
        log.warning("%s is left alone: %s", name, reason)
    else:
        setattr(module, parameter_name, compress_parameter(parameter, wide, name))
    return module
