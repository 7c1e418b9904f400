"""Read a GGUF file with numpy alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = 0x46554747
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_F32, _F16, _Q4_0, _Q4_1, _Q8_0 = 0, 1, 2, 3, 8
# Weights and bytes of one block of each tensor type.
_BLOCKS = {_F32: (1, 4), _F16: (1, 2), _Q4_0: (32, 18), _Q4_1: (32, 20), _Q8_0: (32, 34)}


@dataclass(frozen=True)
class Tensor:
    """One stored tensor; `decode()` gives it in fp32."""

    shape: tuple[int, ...]
    kind: int
    raw: np.ndarray

    def decode(self) -> np.ndarray:
        """The values, fp32 [shape]."""
        raw = np.ascontiguousarray(self.raw)
        if self.kind == _F32:
            return raw.view(np.float32).reshape(self.shape).copy()
        if self.kind == _F16:
            return _halves(raw).reshape(self.shape)
        blocks = raw.reshape(-1, _BLOCKS[self.kind][1])
        scale = _halves(blocks[:, :2])
        if self.kind == _Q8_0:
            return (scale * blocks[:, 2:].view(np.int8)).reshape(self.shape)
        packed = blocks[:, -16:]
        quants = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
        if self.kind == _Q4_0:
            return (scale * (quants - 8)).reshape(self.shape)
        return (scale * quants + _halves(blocks[:, 2:4])).reshape(self.shape)


def _halves(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


class _Reader:
    def __init__(self, data: np.ndarray) -> None:
        self.data, self.position = memoryview(data.data), 0

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.position)[0]
        self.position += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        start, self.position = self.position, self.position + length
        return bytes(self.data[start : self.position]).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, count = self.scalar("I"), self.scalar("Q")
            return [self.value(element) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of the file at `path`; tensors stay on disk until decoded.

    Raises `ValueError` if it is not GGUF or stores a tensor type that this reader lacks.
    """
    data = np.memmap(path, np.uint8, "r")
    reader = _Reader(data)
    if reader.scalar("I") != _MAGIC:
        raise ValueError(f"{path} is not a GGUF file")
    reader.scalar("I")  # the version; 2 and 3 read alike
    tensor_count, metadata_count = reader.scalar("Q"), reader.scalar("Q")
    metadata = {reader.string(): reader.value(reader.scalar("I")) for _ in range(metadata_count)}
    entries = list(_entries(reader, tensor_count))
    alignment = metadata.get("general.alignment", 32)
    base = -(-reader.position // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        if kind not in _BLOCKS:
            raise ValueError(
                f"tensor {name!r} in {path} has GGUF type {kind}, not one of {_BLOCKS}"
            )
        weights, size = _BLOCKS[kind]
        start = base + offset
        stop = start + int(np.prod(shape)) // weights * size
        tensors[name] = Tensor(shape, kind, data[start:stop])
    return metadata, tensors


def _entries(reader: _Reader, count: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    for _ in range(count):
        name = reader.string()
        # Dimensions are stored fastest first.
        shape = tuple(reversed([reader.scalar("Q") for _ in range(reader.scalar("I"))]))
        yield name, shape, reader.scalar("I"), reader.scalar("Q")
