"""PhiQuantConfig: how ``from_pretrained`` compresses."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from phiquant.codec.layout import check_choice
from phiquant.config import PhiConfig
from phiquant.precision import TIERS

METHOD = "phiquant"
FORMAT_VERSION = 1
_OF_ONE_LOAD = ("load", "offload_folder")


class PhiQuantConfig(QuantizationConfigMixin):
    """:class:`phiquant.PhiConfig` for ``from_pretrained(..., quantization_config=...)``.

    Args:
        index_bits, deviation_bits, group_size, grid, fit, exact: as for
            :class:`phiquant.PhiConfig`.
        modules_to_not_convert: modules to leave alone: names or regular expressions that match
            whole dotted segments anywhere in a module's name, so "lm_head", "self_attn",
            "layers.0" and r"layers\\.[01]\\.mlp" each leave out all that is inside of them.
        load: how deep to read a compressed checkpoint: "index", "deviation", "exact", or None for
            all that is there; of this one load, and not saved with the model.
        measured: what is known of a compressed model: "bits_per_weight" and "relative_error".
        offload_folder: where the weights that a ``device_map`` puts on "disk" are written and
            mapped while they are compressed; of this one load, and not saved with the model.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; the message
            names it.
    """

    quant_method: Any = METHOD  # transformers' own methods are an enum

    def __init__(
        self,
        index_bits: int = 4,
        deviation_bits: int = 4,
        group_size: int = 64,
        grid: str = "phi",
        fit: str = "joint",
        exact: bool = False,
        modules_to_not_convert: Sequence[str] | str | None = None,
        load: str | None = None,
        offload_folder: str | os.PathLike[str] | None = None,
        measured: dict[str, float] | None = None,
    ) -> None:
        self.quant_method = METHOD
        self.format_version = FORMAT_VERSION
        self.index_bits, self.deviation_bits = index_bits, deviation_bits
        self.group_size, self.grid, self.fit = group_size, grid, fit
        self.exact = exact
        self.modules_to_not_convert = _patterns(modules_to_not_convert)
        self.offload_folder = None if offload_folder is None else os.fspath(offload_folder)
        check_choice("load", load, (*TIERS, None))
        self.load = load
        self.measured = _numbers(measured)
        self.phi_config  # noqa: B018 - validates

    @property
    def phi_config(self) -> PhiConfig:
        """The same settings for :func:`phiquant.quantize_`; raises ValueError for a bad one."""
        return PhiConfig(**{field.name: getattr(self, field.name) for field in fields(PhiConfig)})

    def get_apply_tensor_subclass(self) -> PhiConfig:
        """What PEFT passes to torchao's ``quantize_`` to compress a merged weight again."""
        return self.phi_config

    def to_dict(self) -> dict[str, Any]:
        """What is saved with a model: nothing of the machine that compressed it."""
        settings: dict[str, Any] = super().to_dict()
        for name in _OF_ONE_LOAD:
            del settings[name]
        return {name: value for name, value in settings.items() if value is not None}

    def get_loading_attributes(self) -> dict[str, Any]:
        """What of this config holds for a checkpoint that has a config of its own."""
        given = {name: getattr(self, name) for name in _OF_ONE_LOAD}
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The inverse of ``to_dict``, for what anyone may have written into a config.json.

        Raises:
            ValueError: another method or format version, a key that is not known, or a value of
                another type or out of range; the message names the key.
        """
        if not isinstance(config_dict, dict):
            raise ValueError(f"quantization_config: expected an object, got {config_dict!r}")
        settings = dict(config_dict)
        method = settings.pop("quant_method", METHOD)
        if method != METHOD:
            raise ValueError(
                f"quantization_config: quant_method must be {METHOD!r}, got {method!r}"
            )
        version = settings.pop("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or isinstance(version, bool) or version != FORMAT_VERSION:
            raise ValueError(
                f"quantization_config: format_version must be {FORMAT_VERSION}, got {version!r}; "
                "a newer phiquant may read it"
            )
        known = {field.name for field in fields(PhiConfig)} | {"modules_to_not_convert", "measured"}
        if unknown := sorted(map(str, settings.keys() - known)):
            raise ValueError(f"quantization_config: unknown {unknown}; known are {sorted(known)}")
        overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in known}
        try:
            config = cls(**(settings | overrides))
        except (TypeError, ValueError) as error:
            raise ValueError(f"quantization_config: {error}") from error
        return (config, kwargs) if return_unused_kwargs else config

    def read_at(self, tier: str | None) -> None:
        """Say of a model that was read less deep what it holds, for when it is saved."""
        if tier in ("index", "deviation"):
            self.exact, self.measured = False, None
            self.fit = "joint" if self.fit == "exact" else self.fit
        if tier == "index":
            self.deviation_bits = 0

    def leaves_out(self, module_name: str) -> str | None:
        """The first entry of ``modules_to_not_convert`` that matches, or None."""
        for pattern in self.modules_to_not_convert or ():
            if _at_segments(pattern).search(module_name):
                return pattern
        return None


def _at_segments(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|\.)(?:{pattern.removesuffix('.weight')})(?:\.|$)")


def _numbers(measured: object) -> dict[str, float] | None:
    if measured is None:
        return None
    if not isinstance(measured, dict):
        raise TypeError(f"measured: expected numbers by name, got {measured!r}")
    for name, value in measured.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(name, str) or not number or not math.isfinite(value):
            raise TypeError(f"measured: expected a finite number for {name!r}, got {value!r}")
    return measured


def _patterns(given: Sequence[str] | str | None) -> list[str] | None:
    if given is None:
        return None
    if not isinstance(given, str | list | tuple | set | frozenset):
        raise TypeError(f"modules_to_not_convert: expected names or patterns, got {given!r}")
    patterns = [given] if isinstance(given, str) else list(given)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise TypeError(
                f"modules_to_not_convert: expected names or patterns, got {pattern!r} in {given!r}"
            )
        try:
            _at_segments(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"modules_to_not_convert: {pattern[:200]!r} is not a regular expression ({error})"
            ) from error
    return patterns
