"""Small models to store, and an editor of safetensors files that writes whatever it is told."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.support import DTYPES, same_bits, weight, with_specials

PLANES = (
    "index_plane",
    "scale_plane",
    "deviation_plane",
    "deviation_low_plane",
    "remainder_plane",
    "offset_plane",
    "start_plane",
    "exception_plane",
    "checksum_plane",
)


class Holder(nn.Module):
    """Parameters by name, for any tensors."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))


def kinds() -> dict[str, Callable[[], PhiTensor]]:
    """One small weight of every kind that a file can hold."""

    def of(*shape: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> PhiTensor:
        storage = {key: options.pop(key) for key in ("transposed", "column_dims") if key in options}
        return PhiTensor.from_hp(weight(*shape, dtype=dtype), PhiConfig(**options), **storage)

    def special(dtype: torch.dtype) -> PhiTensor:
        return PhiTensor.from_hp(with_specials(weight(6, 600, dtype=dtype)), PhiConfig(exact=True))

    made: dict[str, Callable[[], PhiTensor]] = {
        f"{i}+{d}": lambda i=i, d=d: of(8, 200, index_bits=i, deviation_bits=d)
        for i, d in ((4, 0), (2, 2), (4, 4), (5, 8), (3, 4), (6, 8))
    }
    made |= {f"group {g}": lambda g=g: of(5, 200, group_size=g) for g in (32, 128)}
    made |= {
        "golden": lambda: of(8, 200, grid="golden"),
        "exact golden": lambda: of(8, 600, grid="golden", exact=True),
        "exact 2": lambda: of(4, 600, deviation_bits=2, exact=True),
        "exact 8": lambda: of(4, 600, index_bits=5, deviation_bits=8, exact=True),
        "one block": lambda: of(1, 40, exact=True),
        "many blocks": lambda: of(40, 1100, exact=True),
        "transposed": lambda: of(96, 40, transposed=True, exact=True),
        "convolution": lambda: of(16, 8, 3, 3, column_dims=3, exact=True),
        "experts": lambda: of(3, 16, 600, exact=True),
        "experts transposed": lambda: of(3, 96, 16, transposed=True),
        "fp32 of bf16": lambda: PhiTensor.from_hp(
            weight(4, 200, dtype=torch.bfloat16).float(), PhiConfig(exact=True)
        ),
    }
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        made[f"lossy {name}"] = lambda dtype=dtype: of(8, 200, dtype=dtype)
        made[f"special {name}"] = lambda dtype=dtype: special(dtype)
    return made


def same_planes(one: Tensor, other: Tensor, planes: tuple[str, ...] = PLANES) -> bool:
    """Whether two compressed weights are of the same attributes and bits."""
    assert isinstance(one, PhiTensor)
    assert isinstance(other, PhiTensor)
    attributes = (n for n in PhiTensor.tensor_attribute_names if n != "deviation_bits")
    if any(getattr(one, name) != getattr(other, name) for name in attributes):
        return False
    pairs = [(getattr(one, name), getattr(other, name)) for name in planes]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def same_decodes(one: Tensor, other: Tensor) -> bool:
    """Whether two weights, compressed or plain, hold the same bits."""
    return same_bits(*(t.dequantize() if isinstance(t, PhiTensor) else t for t in (one, other)))


@dataclass
class Entry:
    """One tensor of a file, as it is written, right or wrong."""

    dtype: str
    shape: list[Any]
    data: bytes
    offsets: list[int] | None = None  # None: where the data is


@dataclass
class RawFile:
    """A safetensors file to be damaged.

    pairs: further keys and values of the header, which may be there already.
    """

    entries: dict[str, Entry]
    metadata: dict[str, Any] = field(default_factory=dict)
    pairs: list[tuple[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.of(path.read_bytes())

    @classmethod
    def of(cls, octets: bytes) -> Self:
        (size,) = struct.unpack("<Q", octets[:8])
        header, data = json.loads(octets[8 : 8 + size]), octets[8 + size :]
        metadata = header.pop("__metadata__", {})
        entries = {
            key: Entry(said["dtype"], said["shape"], data[slice(*said["data_offsets"])])
            for key, said in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"])
        }
        return cls(entries, metadata)

    def write(self, path: Path) -> None:
        path.write_bytes(self.octets())

    def octets(self) -> bytes:
        said: list[tuple[str, Any]] = [("__metadata__", self.metadata)] if self.metadata else []
        at = 0
        for key, entry in self.entries.items():
            offsets = entry.offsets or [at, at + len(entry.data)]
            entry_says = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
            said.append((key, entry_says))
            at += len(entry.data)
        body = ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in said + self.pairs)
        header = f"{{{body}}}".encode()
        header += b" " * (-len(header) % 8)
        data = b"".join(entry.data for entry in self.entries.values())
        return struct.pack("<Q", len(header)) + header + data

    def numbers(self, key: str) -> list[int]:
        """A tensor of int64 numbers."""
        data = self.entries[key].data
        return list(struct.unpack(f"<{len(data) // 8}q", data[: len(data) // 8 * 8]))

    def put_numbers(self, key: str, numbers: list[int]) -> None:
        data = struct.pack(f"<{len(numbers)}q", *numbers)
        self.entries[key] = Entry("I64", [len(numbers)], data)

    def put(self, key: str, place: int, value: int, number: str = "B") -> None:
        """Write a number of a struct format at one place of a tensor."""
        size = struct.calcsize(f"<{number}")
        data = bytearray(self.entries[key].data)
        data[place * size : (place + 1) * size] = struct.pack(f"<{number}", value)
        self.entries[key].data = bytes(data)


def stored(path: Path, tensor: PhiTensor, name: str = "weight") -> RawFile:
    """The file of a module that holds this one weight."""
    phiquant.save(Holder(**{name: tensor}), path)
    return RawFile.read(path)
