"""The safetensors files of a checkpoint, and what their headers say, before any data is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
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
OURS = "phiquant."  # what our keys of a file's metadata begin with
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
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
    names = sorted(set(_weight_map(index).values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"{index}: names files that are not there: {missing[:4]}")
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each key."""
    try:
        read = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=each_once)
        weight_map = dict(read["weight_map"])
        for name in set(weight_map.values()):
            _check_plain(name)
        return weight_map
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not an index of weight files: {error}") from error


def check_index(path: str | Path, stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError if a checkpoint's index names a tensor that its file does not hold."""
    index = Path(path) if Path(path).suffix == ".json" else Path(path) / INDEX
    for key, name in _weight_map(index).items() if index.is_file() else ():
        if key not in stored or stored[key].file.name != name:
            raise CheckpointError(f"{index}: {key}: is not in {name}, as the index says")


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ; readers do not agree on which of two is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _check_plain(name: object) -> None:
    """Raise unless this is a file's name that does not lead out of its folder."""
    if not isinstance(name, str) or not name.endswith(SUFFIX):
        raise TypeError(f"{name!r} is not the name of a {SUFFIX} file")
    if PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
        raise ValueError(f"{name!r} is not in the folder")


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
        CheckpointError: a file is damaged or no safetensors file, or two hold the same key or
            differ in what they say of the checkpoint.
    """
    stored: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in files:
        handle = _open(file)
        said = handle.metadata() or {}
        for key in said.keys() & metadata.keys():
            if key.startswith(OURS) and said[key] != metadata[key]:
                raise CheckpointError(f"{file}: {key}: differs from what another file says")
        metadata |= said
        for key in handle.keys():  # noqa: SIM118 - not a mapping
            if key in stored:
                other = stored[key].file
                raise CheckpointError(f"{file}: {key} is in {other} already; one must go")
            part = handle.get_slice(key)
            dtype = _DTYPES.get(part.get_dtype())
            stored[key] = Stored(file, key, dtype, tuple(part.get_shape()), handle)
    return stored, metadata


def _open(file: Path) -> Any:
    """A handle on a file whose header was looked through."""
    if not file.is_file():
        if file.exists():  # reading a pipe or a device may never end
            raise CheckpointError(f"{file}: is not a regular file")
        raise FileNotFoundError(f"{file}: no such file")
    try:
        _check_keys(file)
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a whole {SUFFIX} file: {error}") from error


def _check_keys(file: Path) -> None:
    """Raise ValueError if a key is in a file's header twice: safetensors takes the last one."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > min(_LARGEST_HEADER, file.stat().st_size):
            raise ValueError(f"its header cannot have {size} bytes")
        json.loads(stream.read(size), object_pairs_hook=each_once)
