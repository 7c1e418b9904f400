"""The checkpoint that is to be compressed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiquant.checkpoint import CheckpointError
from phiquant.checkpoint.files import INDEX, find_files, open_files
from phiquant.checkpoint.names import HEADER, split_key

CONFIG = "config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HARMLESS = (".json", ".jsonl", ".txt", ".md", ".model", ".jinja", ".tiktoken", ".vocab", ".yaml")
_HARMLESS_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")


@dataclass(frozen=True)
class Source:
    """A folder or file of plain weights.

    Args:
        path: what was given.
        files: its weight files.
        config: what config.json says, if it is that of a transformers model.
    """

    path: Path
    files: list[Path]
    config: dict[str, Any] | None

    @classmethod
    def at(cls, path: Path) -> Source:
        """Look at a checkpoint without reading its weights.

        Raises:
            FileNotFoundError: there is nothing, or no weight file.
            CheckpointError: a file is damaged, or compressed already, or the weights are pickled.
        """
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such file or folder; a model of the hub must be downloaded first"
            )
        _refuse_pickles(path)
        source = cls(path, find_files(path), _config(path))
        source._refuse_compressed()
        return source

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def fingerprint(self) -> dict[str, list[int]]:
        """Size and time of change of every file that the result depends on."""
        config = [self.folder / CONFIG] if self.config is not None else []
        stats = {file.name: file.stat() for file in [*self.files, *config]}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}

    def companions(self) -> tuple[list[Path], list[Path]]:
        """Files beside the weights, relative to the folder: to copy, and to leave.

        Only text that nobody executes is copied: no code, no pickles, no other weights.
        """
        copied: list[Path] = []
        left: list[Path] = []
        for file in sorted(self.folder.rglob("*")) if self.path.is_dir() else []:
            name = file.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if hidden or not file.is_file() or file in self.files or _is_rewritten(name):
                continue
            (copied if _is_harmless(file) else left).append(name)
        return copied, left

    def _refuse_compressed(self) -> None:
        if (self.config or {}).get("quantization_config") is not None:
            method = self.config["quantization_config"].get("quant_method")  # type: ignore[index]
            raise CheckpointError(
                f"{self.folder / CONFIG}: is quantized already ({method}); give the original"
            )
        stored, _ = open_files(self.files)
        for key, where in stored.items():
            split = split_key(key)
            if split is not None and split[1] == HEADER:
                raise CheckpointError(f"{where.file}: {split[0]}: is compressed already")


def _is_rewritten(name: Path) -> bool:
    return name.name.endswith(".index.json") or name == Path(CONFIG)


def _is_harmless(file: Path) -> bool:
    return file.suffix.lower() in _HARMLESS or file.name.upper().startswith(_HARMLESS_NAMES)


def _config(path: Path) -> dict[str, Any] | None:
    """What config.json says, if there is one that names a transformers model."""
    file = path / CONFIG
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected settings by name, got {config!r}")
    return config if "model_type" in config else None


def _refuse_pickles(path: Path) -> None:
    """Raise CheckpointError if there are pickled weights, and no others."""
    if path.is_file():
        found = [path] if path.suffix in _PICKLES else []
    elif (path / INDEX).is_file() or any(path.glob("*.safetensors")):
        found = []
    else:
        found = sorted(file for file in path.iterdir() if file.suffix in _PICKLES)
    if found:
        raise CheckpointError(
            f"{found[0]}: is a pickle, which may run any code when it is read; load the model "
            "with transformers where you trust it, and save_pretrained writes safetensors"
        )
