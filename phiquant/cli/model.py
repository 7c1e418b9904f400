"""Compress a folder of a transformers model; the only part of the command that imports it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from phiquant.checkpoint.files import open_files
from phiquant.cli.outline import outline
from phiquant.cli.source import CONFIG, Source
from phiquant.cli.store import Store
from phiquant.config import PhiConfig
from phiquant.report import Report

CARD = "README.md"

if TYPE_CHECKING:
    from phiquant.integrations.hf_config import PhiQuantConfig
    from phiquant.integrations.hf_streaming import Streamed


def stream_model(
    source: Source, config: PhiConfig, skip: Sequence[str], store: Store
) -> tuple[Streamed, dict[str, Any]]:
    """Compress the model into a store; returns what was done and the new config.json.

    Raises:
        ImportError: transformers is not installed.
        ValueError: it does not know the model, or a weight cannot be compressed.
        OSError: a file cannot be read or written.
    """
    settings = _settings(config, skip)
    from phiquant.integrations.hf_quantizer import measured
    from phiquant.integrations.hf_streaming import stream

    assert source.config is not None
    with _without_bars():
        streamed = stream(source.folder, architecture_of(source), settings, store)
    settings.measured = measured(streamed.report)
    dtype = str(streamed.dtype).removeprefix("torch.")
    config_json = {k: v for k, v in source.config.items() if k != "torch_dtype"}
    return streamed, config_json | {"dtype": dtype, "quantization_config": settings.to_dict()}


def card_of(source: Source, folder: Path, report: Report) -> str:
    """The text of a card for what was compressed into a folder."""
    from phiquant.integrations.hf_card import card_text
    from phiquant.integrations.hf_config import PhiQuantConfig

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    settings = PhiQuantConfig.from_dict(config["quantization_config"])
    return card_text(source.folder.resolve().name, architecture_of(source), settings, report)


def outline_model(source: Source, config: PhiConfig, skip: Sequence[str]) -> Report:
    """What would become of every parameter, from the model's architecture alone.

    Raises:
        ImportError, ValueError: as :func:`stream_model`.
    """
    settings = _settings(config, skip)
    import transformers

    from phiquant.integrations.hf_loading import Loading
    from phiquant.integrations.hf_streaming import class_of

    model_class = class_of(architecture_of(source))
    model_config = transformers.AutoConfig.from_pretrained(source.folder)
    dtype = model_config.dtype or _first_dtype(source)
    with torch.device("meta"):
        model = model_class._from_config(model_config, dtype=dtype)
    loading = Loading(model, settings, dtype)
    slots = {id(slot): slot for slot in loading.slots.values()}
    for slot in slots.values():
        slot.reason = loading._reason(slot).replace("modules_to_not_convert", "--skip")
    return outline(slots.values())


def check_model(source: Source) -> None:
    """Raise ImportError or ValueError as :func:`stream_model` would, before anything is made."""
    _settings(PhiConfig(), ())
    from phiquant.integrations.hf_streaming import class_of

    class_of(architecture_of(source))


def architecture_of(source: Source) -> str:
    """The name of the model's class.

    Raises:
        ValueError: config.json does not say it.
    """
    names = (source.config or {}).get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ValueError(
            f"{source.folder / CONFIG}: architectures: expected the name of the model's class in "
            f"a list, got {names!r}"
        )
    return names[0]


def _settings(config: PhiConfig, skip: Sequence[str]) -> PhiQuantConfig:
    try:
        from phiquant.integrations.transformers import PhiQuantConfig
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "transformers":
            raise
        raise ImportError(
            "config.json is that of a transformers model: pip install 'phiquant[hf]'"
        ) from error
    return PhiQuantConfig(**asdict(config), modules_to_not_convert=list(skip) or None)


def _first_dtype(source: Source) -> torch.dtype:
    """The dtype that transformers takes for "auto" where config.json tells none."""
    stored, _ = open_files(source.files)
    dtypes = (where.map().dtype for where in stored.values())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers' own bar counts parameters beside ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
