"""torch.load(weights_only=True) gives planes that nobody looked at: ops raise, and never crash."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from phiquant import PhiTensor
from tests.checkpoint.support import kinds, same_planes

LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1


def reloaded(tensor: PhiTensor, **state: Any) -> PhiTensor:
    """The tensor as torch.load gives it, with other things in its state."""
    hostile = tensor._with()
    hostile.__dict__.update(state)
    file = io.BytesIO()
    torch.save({"weight": hostile}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["weight"]


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_comes_back(kind: str) -> None:
    tensor = kinds()[kind]()
    assert same_planes(reloaded(tensor), tensor)


def of(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "short index": ("4+4", {"index_plane": of((8, 1), torch.uint8)}),
    "fewer rows": ("4+4", {"index_plane": of((1, 128), torch.uint8)}),
    "no rows": ("4+4", {"index_plane": of((0, 128), torch.uint8)}),
    "0-d index": ("4+4", {"index_plane": of((), torch.uint8)}),
    "0-d scale": ("4+4", {"scale_plane": of((), torch.int16)}),
    "scale of floats": ("4+4", {"scale_plane": of((8, 4), torch.float16)}),
    "scale of bytes": ("4+4", {"scale_plane": of((8, 4), torch.uint8)}),
    "one word for all": ("4+4", {"scale_plane": of((1, 1), torch.int16).expand(1 << 40, 4)}),
    "product of dimensions": ("4+4", {"scale_plane": of((0, 1), torch.int16).expand(0, 4)}),
    "no deviation": ("4+4", {"deviation_plane": None}),
    "a low deviation": ("4+4", {"deviation_low_plane": of((8, 128), torch.uint8)}),
    "columns": ("4+4", {"columns": 1 << 40}),
    "columns near 2^63": ("4+4", {"columns": HIGHEST}),
    "no columns": ("4+4", {"columns": 0}),
    "columns below zero": ("4+4", {"columns": LOWEST}),
    "more columns than planes": ("4+4", {"columns": 257}),
    "index bits": ("4+4", {"index_bits": 6}),
    "index bits below zero": ("4+4", {"index_bits": -4}),
    "deviation bits": ("4+4", {"deviation_bits": 8}),
    "group size 0": ("4+4", {"group_size": 0}),
    "exponent": ("4+4", {"exponent": 4000}),
    "grid": ("4+4", {"grid": "x" * 1000}),
    "offsets missing": ("many blocks", {"offset_plane": None}),
    "one offset": ("many blocks", {"offset_plane": of((1, 1), torch.int16)}),
    "no start": ("many blocks", {"start_plane": of((0,), torch.int64)}),
    "starts of bytes": ("many blocks", {"start_plane": of((4,), torch.uint8)}),
    "starts near 2^63": ("many blocks", {"start_plane": torch.full((4,), HIGHEST)}),
    "starts of all blocks": ("many blocks", {"start_plane": torch.full((120,), HIGHEST)}),
    "starts below zero": ("many blocks", {"start_plane": torch.full((120,), LOWEST)}),
    "empty remainder": ("many blocks", {"remainder_plane": of((0,), torch.uint8)}),
    "7 bytes of remainder": ("many blocks", {"remainder_plane": of((7,), torch.uint8)}),
    "8 bytes of remainder": ("many blocks", {"remainder_plane": of((8,), torch.uint8)}),
    "stored as integers": ("many blocks", {"stored_dtype": torch.int8}),
    "stored as fp32": ("many blocks", {"stored_dtype": torch.float32}),
    "exceptions of one column": ("special bfloat16", {"exception_plane": of((3, 1), torch.int64)}),
    "0-d exceptions": ("special bfloat16", {"exception_plane": of((), torch.int64)}),
    "exceptions near 2^63": ("special bfloat16", {"exception_plane": torch.full((2, 2), HIGHEST)}),
    "exceptions below zero": ("special bfloat16", {"exception_plane": torch.full((2, 2), LOWEST)}),
    "planes of floats": ("4+4", {"index_plane": of((8, 128), torch.float32)}),
    "sparse index": ("4+4", {"index_plane": of((8, 128), torch.uint8).to_sparse()}),
    "index is a text": ("4+4", {"index_plane": "planes"}),
    "index is a number": ("4+4", {"index_plane": 3}),
}  # fmt: skip


@pytest.mark.parametrize("what", STATES)
def test_hostile_planes_are_an_error(what: str) -> None:
    kind, state = STATES[what]
    tensor = reloaded(kinds()[kind](), **state)
    x = torch.ones(2, tensor.shape[1], dtype=torch.bfloat16)
    uses = {
        "decode": lambda: tensor.dequantize(),
        "linear": lambda: functional.linear(x, tensor),
        "embedding": lambda: functional.embedding(torch.tensor([0, tensor.shape[0] - 1]), tensor),
    }
    for use, run in uses.items():
        with pytest.raises((ValueError, TypeError, RuntimeError, AttributeError, IndexError)):
            pytest.fail(f"{use} gave {run().shape}")
