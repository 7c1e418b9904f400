"""Damage to a checkpoint's files, from blind to well informed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from phiquant.checkpoint.header import FIELDS, Header
from phiquant.checkpoint.names import HEADER, key_of, split_key
from tests.checkpoint.support import Entry, RawFile
from tests.fuzz.seeds import Folder

EXTREMES = [
    0, 1, -1, 2, 7, 8, 31, 32, 33, 64, 127, 128, 255, 256, 511, 512, 513, 1 << 15, 1 << 16,
    (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, 1 << 48, 1 << 55, 1 << 62, (1 << 63) - 1,
    -(1 << 63), -(1 << 31), -(1 << 62), -64,
]  # fmt: skip
_DTYPES = ["U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "BOOL", "F8_E4M3", "X"]
_PLANES = {torch.uint8: "U8", torch.int16: "I16", torch.int64: "I64"}

Edit = Callable[[Random, RawFile], None]


def flip(rng: Random, data: bytes, first: int, stop: int) -> bytes:
    """Other bytes at 1 to 8 places."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(first, stop)] = rng.choice([0, 255, rng.randrange(256)])
    return bytes(changed)


def flip_anywhere(rng: Random, data: bytes) -> bytes:
    return flip(rng, data, 0, len(data))


def flip_header(rng: Random, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little") if len(data) > 8 else 0
    return flip(rng, data, 0, min(len(data), 8 + max(1, size % (1 << 32))))


def truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def splice(rng: Random, data: bytes) -> bytes:
    """A piece put in, in the place of another or taken out."""
    at, source = rng.randrange(len(data)), rng.randrange(len(data))
    size = rng.choice([1, 2, 8, 64, 4096])
    return data[:at] + data[source : source + size] + data[at + rng.choice([0, size, 2 * size]) :]


def edit_number(rng: Random, file: RawFile) -> None:
    """An extreme in a header, a start or an exception."""
    keys = [key for key, entry in file.entries.items() if entry.dtype == "I64" and entry.data]
    if keys:
        entry = file.entries[rng.choice(keys)]
        places = len(entry.data) // 8
        for _ in range(rng.choice([1, 1, 2])):
            number = struct.pack("<q", rng.choice(EXTREMES))
            at = 8 * rng.randrange(places)
            entry.data = entry.data[:at] + number + entry.data[at + 8 :]


def edit_field(rng: Random, file: RawFile) -> None:
    """One number of a header, a little or much."""
    keys = [key for key in file.entries if key.endswith(f"_{HEADER}")]
    if keys:
        key = rng.choice(keys)
        numbers = file.numbers(key) or [0]
        place = rng.randrange(len(numbers))
        near = numbers[place] + rng.choice([-1, 1, 64])
        numbers[place] = rng.choice([*EXTREMES, *[near] * 20])
        cut = rng.choice([None] * 8 + [len(numbers) - 1])
        if all(-(1 << 63) <= number < 1 << 63 for number in numbers):
            file.put_numbers(key, numbers[:cut])


def edit_plane(rng: Random, file: RawFile) -> None:
    """Bytes of one tensor."""
    entry = file.entries[rng.choice(list(file.entries))]
    if entry.data:
        entry.data = flip(rng, entry.data, 0, len(entry.data))


def swap_planes(rng: Random, file: RawFile) -> None:
    """Two tensors' places; more often two of the same plane."""
    one = rng.choice(list(file.entries))
    alike = [key for key in file.entries if key.rpartition("_")[2] == one.rpartition("_")[2]]
    other = rng.choice(alike if rng.random() < 0.8 else list(file.entries))
    file.entries[one], file.entries[other] = file.entries[other], file.entries[one]


def edit_entry(rng: Random, file: RawFile) -> None:
    """What the file says of one tensor."""
    entry = file.entries[rng.choice(list(file.entries))]
    what = rng.randrange(4)
    if what == 0:
        entry.dtype = rng.choice(_DTYPES)
    elif what == 1 and entry.shape:
        entry.shape[rng.randrange(len(entry.shape))] = rng.choice([*EXTREMES, None, "4", 2.5])
    elif what == 2:
        entry.shape = rng.choice([[], [1, *entry.shape], [*entry.shape, 1], entry.shape[::-1]])
    else:
        entry.offsets = [rng.choice(EXTREMES), rng.choice(EXTREMES)]


def edit_keys(rng: Random, file: RawFile) -> None:
    """A tensor gone, renamed, or there twice."""
    key = rng.choice(list(file.entries))
    entry = file.entries[key]
    what = rng.randrange(4)
    if what == 0 and len(file.entries) > 1:
        del file.entries[key]
    elif what == 1:
        name, _ = split_key(key) or (key, "")
        new = rng.choice([name, key_of(name, "starts"), "__class__.x", "a..b", "", key + "_index"])
        file.entries[new] = file.entries.pop(key)
    elif what == 2:
        file.pairs.append((key, {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}))
    else:
        file.entries[f"x.{key}"] = Entry(entry.dtype, list(entry.shape), entry.data)


def resize_plane(rng: Random, file: RawFile) -> None:
    """A tensor longer or shorter, and said to be so."""
    entry = file.entries[rng.choice(list(file.entries))]
    if entry.shape and entry.data and isinstance(entry.shape[0], int) and entry.shape[0] > 0:
        row = len(entry.data) // entry.shape[0]
        rows = max(0, entry.shape[0] + rng.choice([-1, 1, -entry.shape[0], 7]))
        entry.data = (entry.data + bytes(row * 8))[: rows * row]
        entry.shape = [rows, *entry.shape[1:]]


def edit_metadata(rng: Random, file: RawFile) -> None:
    names = [key for key in file.entries if not key.startswith("_")] or ["a"]
    value: Any = rng.choice(
        ["", "2", "1", "{", "[" * 5000, 3, None, json.dumps({"new": rng.choice(names)}),
         json.dumps({rng.choice(names): rng.choice(names)}), '{"a": 3}', '{"a": "b"}', "null"]
    )  # fmt: skip
    file.metadata[rng.choice(["phiquant.format", "phiquant.weights", "phiquant.tied", "x"])] = value


def invent_weight(rng: Random, file: RawFile) -> None:
    """A weight whose header is valid and fits its planes, which hold anything."""
    keys = [key for key in file.entries if key.endswith(f"_{HEADER}")]
    if not keys:
        return
    key = rng.choice(keys)
    name, _ = split_key(key) or ("weight", "")
    shape = rng.choice([[1], [3, 40], [2, 513], [5, 1100], [1, 33], [2, 3, 65], [2, 3, 4, 5]])
    exact = rng.random() < 0.7
    numbers = [
        1, rng.randrange(2, 7), rng.choice([2, 4, 8]), rng.choice([32, 64, 128]), rng.randrange(2),
        rng.choice([-112, -10, 0, 112]), rng.randrange(3), rng.randrange(3), rng.randrange(3),
        rng.randrange(2) if len(shape) > 1 else 0, 1, rng.choice([8, 9, 100, 5000]) if exact else 0,
        rng.choice([0, 0, 1, 5]) if len(shape) > 1 else 0, 0, *shape,
    ]  # fmt: skip
    for old in [key for key in file.entries if (split_key(key) or ("",))[0] == name]:
        del file.entries[old]
    header = Header.from_tensor(torch.tensor(numbers))
    assert len(numbers) == FIELDS + len(shape)
    file.put_numbers(key, numbers)
    for plane, (dtype, extent) in header.planes.items():
        size = torch.Size(extent).numel() * dtype.itemsize
        data = rng.choice([bytes(size), rng.randbytes(size), b"\xff" * size])
        if plane == "scale":  # words that pass, so that what comes after is reached
            words = [rng.randrange(0x0400, 0x7C00) & rng.choice([~7, ~0]) for _ in range(size // 2)]
            data = struct.pack(f"<{size // 2}H", *words)
        if plane in ("starts", "exceptions") and rng.random() < 0.7:
            numbers = sorted(rng.choice([0, 8, 50, 90, *EXTREMES]) for _ in range(size // 8))
            data = struct.pack(f"<{size // 8}q", *numbers)
        if plane == "offsets" and rng.random() < 0.7:
            data = bytes(size)
        file.entries[key_of(name, plane)] = Entry(_PLANES[dtype], list(extent), data)


# With weights: what is refused early, as most damage is, need not be tried so often.
BLIND = {flip_anywhere: 5, flip_header: 2, truncate: 1, splice: 2}
EDITS: dict[Edit, int] = {
    edit_number: 3,
    edit_field: 2,
    edit_plane: 6,
    swap_planes: 3,
    edit_entry: 1,
    edit_keys: 1,
    resize_plane: 1,
    edit_metadata: 1,
    invent_weight: 6,
}
KINDS = [function.__name__ for function in (*BLIND, *EDITS)]


def pick(rng: Random, weighted: dict[Any, int]) -> Any:
    return rng.choices(list(weighted), list(weighted.values()))[0]


def mutate(rng: Random, files: Folder, write: Callable[[RawFile], bytes]) -> tuple[str, Folder]:
    """Files with one or two damages to one of them, and the names of these.

    Args:
        write: the octets of an edited file.
    """
    name, damages = rng.choice(list(files)), []
    data = files[name]
    for _ in range(rng.choice([1, 1, 1, 2])):
        if rng.random() < 0.2 or not name.endswith(".safetensors"):
            blind = pick(rng, BLIND)
            damages.append(blind.__name__)
            data = blind(rng, data) or b"\0"
            continue
        try:
            file = RawFile.of(data)
        except (ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError):
            continue  # damaged already
        if not file.entries:
            continue
        edit = pick(rng, EDITS)
        damages.append(edit.__name__)
        edit(rng, file)
        data = write(file)
    return "+".join(damages), files | {name: data}
