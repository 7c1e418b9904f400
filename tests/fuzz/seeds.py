"""Small real checkpoints that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import phiquant
from phiquant import PhiConfig
from phiquant.checkpoint import planes_of
from tests.checkpoint.support import Holder, kinds
from tests.support import TiedModel

_LOSSY = ("4+0", "2+2", "5+8", "group 32", "golden", "convolution", "experts transposed")
_EXACT = ("exact golden", "exact 8", "one block", "many blocks", "transposed", "experts")
_SPECIAL = ("special bfloat16", "special float16", "special float32", "fp32 of bf16", "4+4")


def _of_kinds(*names: str) -> nn.Module:
    made = kinds()
    tensors = {f"w{i}": made[name]() for i, name in enumerate(names)}
    return Holder(**tensors, plain=torch.arange(5.0))


def _tied() -> nn.Module:
    torch.manual_seed(0)
    model = TiedModel()
    phiquant.quantize_(model, PhiConfig(exact=True))
    return model


def _without_metadata(folder: Path) -> None:
    """As another program's writer leaves it."""
    planes = {}
    for name, tensor in _of_kinds(*_SPECIAL).named_parameters():
        planes |= planes_of(name, tensor) if name != "plain" else {name: tensor.detach()}
    save_file(planes, folder / "model.safetensors")


_WRITERS: dict[str, Callable[[Path], None]] = {
    "lossy": lambda folder: phiquant.save(_of_kinds(*_LOSSY), folder),
    "exact": lambda folder: phiquant.save(_of_kinds(*_EXACT), folder),
    "exceptions": lambda folder: phiquant.save(_of_kinds(*_SPECIAL), folder),
    "shards": lambda folder: phiquant.save(_tied(), folder, max_shard_size="30KB"),
    "plain writer": _without_metadata,
}


def _plain(*names: str) -> nn.Module:
    tensors = {f"w{i}": torch.zeros(_shape(name)) for i, name in enumerate(names)}
    return Holder(**tensors, plain=torch.zeros(5))


@cache
def _shape(name: str) -> tuple[int, ...]:
    return tuple(kinds()[name]().shape)


# What a model that takes a checkpoint is made by.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "lossy": lambda: _plain(*_LOSSY),
    "exact": lambda: _plain(*_EXACT),
    "exceptions": lambda: _plain(*_SPECIAL),
    "shards": TiedModel,
    "plain writer": lambda: _plain(*_SPECIAL),
}

Folder = dict[str, bytes]


def seeds(folder: Path) -> dict[str, Folder]:
    """The files of every checkpoint by name, written below ``folder`` first."""
    found = {}
    for name, write in _WRITERS.items():
        (folder / name).mkdir()
        write(folder / name)
        found[name] = {file.name: file.read_bytes() for file in sorted((folder / name).iterdir())}
    return found
