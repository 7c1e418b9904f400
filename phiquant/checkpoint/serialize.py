"""Write a safetensors file whose planes of one kind lie together.

A model that is read at a shallow tier then reads a few long stretches of the file. safetensors'
own writer sorts by key, so that the planes of a weight lie together, and systems that map more
than what is asked for, or read ahead, bring in planes that nobody reads.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from phiquant.checkpoint.names import HEADER, PLANES, split_key

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = ["", HEADER, *PLANES]  # plain tensors first


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Args:
        tensors: by key; contiguous, on the CPU.
        path: is overwritten.
        metadata: of the file.

    Raises:
        OSError: it cannot be written.
    """
    others = any(tensor.dtype not in _NAMES for tensor in tensors.values())
    if others or sys.byteorder == "big":
        save_file(dict(tensors), path, metadata=dict(metadata))
        return
    keys = sorted(tensors, key=lambda key: _place(key, tensors[key]))
    with path.open("wb") as file:
        file.write(_head(tensors, keys, metadata))
        for key in keys:
            _write(tensors[key], file)


def _place(key: str, tensor: Tensor) -> tuple[int, int]:
    """Wide types first, so that every tensor begins at a multiple of its item's size."""
    split = split_key(key)
    return -tensor.itemsize, _ORDER.index(split[1] if split else "")


def _head(tensors: Mapping[str, Tensor], keys: list[str], metadata: Mapping[str, str]) -> bytes:
    """The header's length and the header, a multiple of 8 bytes."""
    said: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key in keys:
        tensor = tensors[key]
        begin, end = end, end + tensor.nbytes
        said[key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(tensor: Tensor, file: BinaryIO) -> None:
    if tensor.nbytes:
        file.write((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr()))
