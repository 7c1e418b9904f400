"""The kernels as a program of their own, for this processor or an emulated one."""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from phiquant.codec import Layout, Planes
from phiquant.grid import GRIDS

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
SHARED = [
    "tests/native/run_kernels.cpp",
    "csrc/cpu/tables.cpp",
    "csrc/cpu/scan_tables.cpp",
    "csrc/cpu/scan_halves.cpp",
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # as enum Dtype
FITS = ("joint", "index", "deviation")  # as enum Fit
PRICES = {"joint": 1, "index": 1, "deviation": 1, "exact": 8}
NAME, ENCODE, REMAINDER, DECODE, LINEAR = range(5)
ARRAYS = {NAME: 1, ENCODE: 4, REMAINDER: 3, DECODE: 1, LINEAR: 1}


@dataclass(frozen=True)
class Task:
    """What the program reads; the kind says how many arrays it answers with."""

    kind: int
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    status: int
    arrays: list[bytes]


def _numbers(*values: int) -> bytes:
    return struct.pack(f"={len(values)}q", *values)


def _array(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return _numbers(-1)
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    body = bits.numpy().tobytes()
    return _numbers(len(body)) + body


def _head(layout: Layout, rows: int, dtype: torch.dtype) -> bytes:
    bits = (layout.columns, layout.index_bits, layout.deviation_bits, layout.group_size)
    grid = (GRIDS.index(layout.grid), layout.exponent)
    return _numbers(*bits, *grid, rows, DTYPES.index(dtype))


def _lossy(planes: Planes) -> bytes:
    return b"".join(map(_array, planes[:4]))


def name() -> Task:
    return Task(NAME)


def encode(of: Tensor, layout: Layout, fit: str = "joint") -> Task:
    """Pads count as 0 where the layout has any, as the binding tells the kernels."""
    price = -1 if layout.stored_dtype is None else PRICES[fit]
    kind = FITS.index("joint" if fit == "exact" else fit)
    padded = layout.groups * layout.group_size
    importance = (torch.arange(padded) < layout.columns).float()
    weighted = None if padded == layout.columns else importance
    body = _head(layout, len(of), of.dtype) + _numbers(kind, price)
    return Task(ENCODE, body + _array(of) + _array(weighted))


def remainder(of: Tensor, planes: Planes, layout: Layout) -> Task:
    return Task(REMAINDER, _head(layout, len(of), of.dtype) + _lossy(planes) + _array(of))


def decode(planes: Planes, layout: Layout, dtype: torch.dtype) -> Task:
    stored = 0 if layout.stored_dtype is None else DTYPES.index(layout.stored_dtype)
    exact = map(_array, (planes.remainder, planes.offsets, planes.starts))
    body = _head(layout, len(planes.scale), dtype) + _numbers(stored) + _lossy(planes)
    return Task(DECODE, body + b"".join(exact))


def linear(x: Tensor, planes: Planes, layout: Layout, bias: Tensor | None = None) -> Task:
    """``bias`` in fp32."""
    body = _head(layout, len(planes.scale), x.dtype) + _numbers(len(x)) + _lossy(planes)
    return Task(LINEAR, body + _array(x) + _array(bias))


@dataclass(frozen=True)
class Driver:
    """The built program and how it is started."""

    command: list[str]
    isa: str | None = None

    def run(self, tasks: Iterable[Task], *arguments: str) -> list[Answer]:
        given = list(tasks)
        sent = b"".join(_numbers(task.kind) + task.body for task in given)
        environment = {key: value for key, value in os.environ.items() if key != "PHIQUANT_ISA"}
        if self.isa is not None:
            environment["PHIQUANT_ISA"] = self.isa
        done = subprocess.run(
            [*self.command, *arguments], input=sent, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return _answers(given, done.stdout)


def _answers(tasks: list[Task], received: bytes) -> list[Answer]:
    answers, at = [], 0
    for task in tasks:
        (status,) = struct.unpack_from("=q", received, at)
        at += 8
        arrays = []
        for _ in range(ARRAYS[task.kind]):
            (size,) = struct.unpack_from("=q", received, at)
            arrays.append(received[at + 8 : at + 8 + size])
            at += 8 + size
        answers.append(Answer(status, arrays))
    assert at == len(received)
    return answers


def build(compiler: str, files: list[str], folder: Path, *flags: str) -> Path:
    """Compile and link, without any of torch's headers; two compilers at a time."""

    def compiled(source: str) -> Path:
        to = folder / f"{Path(source).name}.o"
        include = ["-I", str(ROOT / "csrc/include")]
        command = [*shlex.split(compiler), *FLAGS, *flags, *include, "-c", str(ROOT / source)]
        _call([*command, "-o", str(to)])
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*files, *SHARED]))
    program = folder / "run_kernels"
    _call([*shlex.split(compiler), *flags, *map(str, objects), "-o", str(program)])
    return program


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def found(*names: str) -> str | None:
    """The first of these programs that is installed."""
    return next((path for path in map(shutil.which, names) if path), None)
