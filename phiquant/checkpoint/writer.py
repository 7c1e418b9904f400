"""Write tensors as safetensors files, shard by shard; a file appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from phiquant.checkpoint.files import INDEX, SUFFIX, WEIGHTS, open_files
from phiquant.checkpoint.header import VERSION
from phiquant.checkpoint.names import HEADER, split_key
from phiquant.checkpoint.reader import FORMAT, Checkpoint
from phiquant.checkpoint.reader import WEIGHTS as COUNT
from phiquant.checkpoint.serialize import write_tensors
from phiquant.checkpoint.stored_planes import planes_of
from phiquant.memory import FreedMemory
from phiquant.tensor import PhiTensor

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PART = "part-{:05d}" + SUFFIX
_TELLING = (HEADER, "scale")  # planes by which a reader knows a compressed weight
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(size: int | str) -> int:
    """Bytes from a number or a text like "5GB".

    Raises:
        ValueError: it is neither, or not positive.

    >>> parse_size("1.5GB")
    1500000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?B)?", str(size).strip(), re.IGNORECASE)
    if (
        match is None
        or (count := int(float(match[1]) * _UNITS.get((match[2] or "").upper(), 1))) < 1
    ):
        raise ValueError(f"max_shard_size: expected bytes or a text like '5GB', got {size!r}")
    return count


class ShardWriter:
    """Writes the tensors of a checkpoint into a folder, holding no more than one shard of them.

    A writer that was interrupted leaves whole parts; a new one on the same folder finds them and
    knows in ``done`` what they hold. :meth:`finish` gives the files their final names.

    Args:
        folder: an existing folder of the writer's own.
        max_shard_size: bytes of a file; a larger weight has one of its own.
    """

    def __init__(self, folder: Path, max_shard_size: int | str = "5GB") -> None:
        self.folder, self.limit = folder, parse_size(max_shard_size)
        self.parts = sorted(folder.glob(_PART.replace("{:05d}", "*")))
        found = Checkpoint(self.parts) if self.parts else None
        self.done: set[str] = set(found or ())
        self._compressed = len(found.headers) if found else 0
        self._said = found.metadata if found else {}
        self._keys = set(open_files(self.parts)[0])
        self._waiting: dict[str, Tensor] = {}
        self._storages: set[int] = set()
        self._bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Store a tensor, compressed or plain, under this name.

        Raises:
            ValueError: it holds no values; or the name is taken.
            OSError: a file cannot be written.
        """
        if name in self.done:
            raise ValueError(f"{name}: is stored already")
        self.done.add(name)
        self._compressed += isinstance(tensor, PhiTensor)
        stored = planes_of(name, tensor) if isinstance(tensor, PhiTensor) else {name: _cpu(tensor)}
        size = sum(data.nbytes for data in stored.values())
        if self._waiting and self._bytes + size > self.limit:
            self.flush({})
        self._check_keys(name, stored)
        for key, data in stored.items():
            self._waiting[key] = self._alone(data)
        self._bytes += size

    def _check_keys(self, name: str, stored: Mapping[str, Tensor]) -> None:
        """A reader tells compressed weights from plain tensors by their keys."""
        split = split_key(name)
        if split is not None and split[1] in _TELLING and name in stored:
            raise ValueError(
                f"{name}: a plain tensor of this name reads as a part of a compressed weight "
                f"{split[0]!r}; rename it"
            )
        if taken := stored.keys() & self._keys:
            raise ValueError(f"{name}: its key {min(taken)!r} is the name of another tensor")
        self._keys |= stored.keys()

    def _alone(self, data: Tensor) -> Tensor:
        """The tensor, or a copy if it shares memory with another or is part of something larger."""
        storage = data.untyped_storage()
        if storage.data_ptr() in self._storages or storage.nbytes() != data.nbytes:
            return data.clone()
        self._storages.add(storage.data_ptr())
        return data

    def flush(self, metadata: Mapping[str, str]) -> None:
        """Write what is waiting as a part of its own."""
        part = self.folder / _PART.format(len(self.parts) + 1)
        save_whole(self._waiting, part, metadata)
        self.parts.append(part)
        self._waiting, self._bytes = {}, 0
        self._storages.clear()
        FreedMemory().give_back()

    def finish(self, metadata: Mapping[str, str] | None = None) -> list[Path]:
        """Write the rest, and name the files: model.safetensors, or shards and an index."""
        said = {COUNT: str(self._compressed), **(metadata or {})}
        if self._waiting or not said.items() <= self._said.items():
            self.flush(said)
        count = len(self.parts)
        names = [WEIGHTS] if count == 1 else [_shard(i + 1, count) for i in range(count)]
        files = [part.replace(self.folder / n) for part, n in zip(self.parts, names, strict=True)]
        if count > 1:
            write_index(files, self.folder / INDEX)
            files.append(self.folder / INDEX)
        return files


def save_whole(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under another name first, then rename it."""
    partial = path.with_name(f".{path.name}.partial")
    said = {"format": "pt", FORMAT: str(VERSION), **metadata}
    try:
        write_tensors(tensors, partial, said)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_index(files: list[Path], index: Path) -> None:
    """Write the index that says which key is in which file."""
    stored, _ = open_files(files)
    weight_map = {key: where.file.name for key, where in stored.items()}
    total = sum(file.stat().st_size for file in files)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    partial = index.with_name(f".{index.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(index)


def move_into(folder: Path, files: list[Path]) -> None:
    """Move the files of a checkpoint into a folder, and remove those of an older one from it.

    The index is moved last: until then the old one names the old files. Where a new file takes the
    name of an old one, the old index goes first: nobody may read new files by it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, index = {file.name for file in files}, folder / INDEX
    if any((folder / name).exists() for name in names - {INDEX, WEIGHTS}):
        index.unlink(missing_ok=True)
    for file in files:
        file.replace(folder / file.name)
    stale = {INDEX, WEIGHTS} | {old.name for old in folder.iterdir() if _SHARD.fullmatch(old.name)}
    for name in sorted(stale - names, key=lambda name: name != INDEX):  # before what it names
        (folder / name).unlink(missing_ok=True)


def _shard(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}{SUFFIX}"


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
