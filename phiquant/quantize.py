"""Compress the weights of a model in place."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torchao.quantization.transform_module import register_quantize_module_handler
from tqdm import tqdm

from phiquant.config import PhiConfig
from phiquant.plan import Filter, Slot, plan, why_not_place, why_not_value
from phiquant.report import Compressed, Report, Skipped
from phiquant.tensor import PhiTensor, check_weight

log = logging.getLogger("phiquant")


def quantize_(
    model: nn.Module,
    config: PhiConfig | None = None,
    filter_fn: Filter | None = None,
    *,
    progress: bool | None = None,
) -> Report:
    """Compress the Linear and Embedding weights of ``model`` in place.

    Parameters that are shared stay shared. Embeddings and a transformers model's output head keep
    at least 4 deviation bits. Each original is freed before the next is compressed; calling it
    again changes nothing.

    Args:
        model: any module; other layers and parameters are left alone and listed in the report.
        config: how; the default is ``PhiConfig()``.
        filter_fn: ``(module, name) -> bool``, asked for every module; False leaves it alone.
        progress: show a progress bar; the default shows one on a terminal only.

    Raises:
        ValueError: a weight holds NaN or infinity, or is on the meta device. Nothing is changed.

    >>> model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> print(quantize_(model).bits_per_weight)
    8.25
    """
    slots = plan(model, _checked(config), filter_fn)
    for slot in slots:
        if slot.config is not None and slot.parameter is not None:
            check_weight(slot.parameter, slot.names[0])
    report = Report()
    total = sum(slot.bytes for slot in slots if slot.config is not None)
    hidden = None if progress is None else not progress
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="phiquant: compress", disable=hidden
    ) as bar:
        while slots:
            slot = slots.pop(0)
            _add(report, slot, _compress(slot))
            bar.update(slot.bytes if slot.config is not None else 0)
    log.info("%s", str(report).partition("\n")[0])
    return report


def preview(
    model: nn.Module, config: PhiConfig | None = None, filter_fn: Filter | None = None
) -> Report:
    """What :func:`quantize_` would do, from shapes alone; works on the meta device too."""
    report = Report()
    for slot in plan(model, _checked(config), filter_fn):
        _add(report, slot, None)
    return report


def _compress(slot: Slot) -> float | None:
    """Replace a parameter in all its places; returns the relative error."""
    parameter, slot.parameter = slot.parameter, None
    if slot.config is None or parameter is None:
        return None
    compressed = compress_parameter(parameter, slot.config, slot.names[0])
    for module, leaf in slot.owners:
        setattr(module, leaf, compressed)
    return relative_error(parameter.detach(), compressed.data)


def compress_parameter(weight: Tensor, config: PhiConfig, name: str) -> nn.Parameter:
    """A frozen parameter that holds the compressed ``weight``."""
    tensor = PhiTensor.from_hp(weight, config, name=name)
    parameter = nn.Parameter(tensor, requires_grad=False)
    parameter.fqn = name  # type: ignore[attr-defined]
    return parameter


def relative_error(original: Tensor, compressed: Tensor) -> float:
    """``|decoded - original| / |original|`` in the Frobenius norm; 0 for a zero weight."""
    decoded = compressed.dequantize(torch.float32)
    size = torch.linalg.vector_norm(original, dtype=torch.float32)
    error = torch.linalg.vector_norm(decoded.sub_(original), dtype=torch.float32)
    return (error / size).item() if size > 0 else 0.0


def _add(report: Report, slot: Slot, error: float | None) -> None:
    names = tuple(slot.names)
    if slot.config is None:
        report.skipped.append(Skipped(names, slot.shape, slot.bytes, slot.reason))
    else:
        report.compressed.append(
            Compressed(names, slot.shape, slot.bytes, slot.stored_bytes, error)
        )


def _checked(config: PhiConfig | None) -> PhiConfig:
    if config is None:
        return PhiConfig()
    if not isinstance(config, PhiConfig):
        raise TypeError(f"config: expected a PhiConfig, got {type(config).__name__}")
    return config


@register_quantize_module_handler(PhiConfig)
def _transform(
    module: nn.Module, config: PhiConfig, *, parameter_name: str = "weight"
) -> nn.Module:
    """torchao's handler: one module, without the care for shared parameters."""
    parameter = getattr(module, parameter_name, None)
    if not isinstance(parameter, nn.Parameter) or isinstance(parameter, PhiTensor):
        return module
    reason = why_not_place(module, parameter_name) or why_not_value(parameter)
    if reason:
        log.warning("%s is left alone: %s", type(module).__name__, reason)
        return module
    wide = config.for_embedding() if isinstance(module, nn.Embedding) else config
    name = f"{type(module).__name__}.{parameter_name}"
    setattr(module, parameter_name, compress_parameter(parameter, wide, name))
    return module
