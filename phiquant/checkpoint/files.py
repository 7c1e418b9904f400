"""The safetensors files of a checkpoint, and what their headers say, before any data is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from phiquant.checkpoint.errors import CheckpointError

SUFFIX = ".safetensors"
WEIGHTS = f"model{SUFFIX}"
INDEX = f"{WEIGHTS}.index.json"
_DTYPES = {"U8": torch.uint8, "I16": torch.int16, "I64": torch.int64}


def find_files(path: str | Path) -> list[Path]:
    """The weight files of a checkpoint: a file itself, or those of a folder.

    A folder holds an index and the files that it names, or model.safetensors, or a single file of
    another name.

    Raises:
        FileNotFoundError: there is no such path, or no weight file in it.
        CheckpointError: the index is damaged or names a file outside of the folder, or several
            files are there without an index.
    """
    path = Path(path)
    if path.is_file():
        return files_of_index(path) if path.name.endswith(".json") else [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if (path / INDEX).is_file():
        return files_of_index(path / INDEX)
    found = [path / WEIGHTS] if (path / WEIGHTS).is_file() else sorted(path.glob(f"*{SUFFIX}"))
    if not found:
        raise FileNotFoundError(f"{path}: holds no {SUFFIX} file")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4])
        raise CheckpointError(f"{path}: holds several weight files ({names}) and no {INDEX}")
    return found


def files_of_index(index: Path) -> list[Path]:
    """The files that an index names, all of them in its folder."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({_plain(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not an index of weight files: {error}") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"{index}: names files that are not there: {missing[:4]}")
    return [index.parent / name for name in names]


def _plain(name: object) -> str:
    """A file's name that does not lead out of its folder."""
    if not isinstance(name, str) or not name.endswith(SUFFIX):
        raise TypeError(f"{name!r} is not the name of a {SUFFIX} file")
    if PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
        raise ValueError(f"{name!r} is not in the folder")
    return name


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: what the file's header says of it, and how to map it."""

    file: Path
    key: str
    dtype: torch.dtype | None  # None: one that planes never have
    shape: tuple[int, ...]
    handle: Any

    def map(self) -> Tensor:
        """The tensor on mapped memory; nothing is read until it is used."""
        try:
            tensor: Tensor = self.handle.get_tensor(self.key)
        except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.file}: {self.key}: cannot be read: {error}") from error
        # Another program's file may begin a plane anywhere, which kernels do not expect.
        return tensor if tensor.data_ptr() % tensor.itemsize == 0 else tensor.clone()


def open_files(files: Iterable[Path]) -> tuple[dict[str, Stored], dict[str, str]]:
    """Every tensor of some files by its key, and their metadata together.

    Raises:
        FileNotFoundError: a file is not there.
        CheckpointError: a file is damaged or no safetensors file, or two hold the same key.
    """
    stored: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in files:
        handle = _open(file)
        metadata |= handle.metadata() or {}
        for key in handle.keys():  # noqa: SIM118 - not a mapping
            if key in stored:
                other = stored[key].file
                raise CheckpointError(f"{file}: {key} is in {other} already; one must go")
            part = handle.get_slice(key)
            dtype = _DTYPES.get(part.get_dtype())
            stored[key] = Stored(file, key, dtype, tuple(part.get_shape()), handle)
    return stored, metadata


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a whole {SUFFIX} file: {error}") from error
