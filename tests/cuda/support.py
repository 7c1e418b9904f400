"""What the tests on a GPU share: planes there, buffers with sentinels around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from phiquant import ops
from phiquant.codec import Layout, Planes
from tests.support import INTEGERS
from tests.test_kernels import random_planes, settings
from tests.test_kernels_exact import compiled_exact, difficult
from tests.test_kernels_linear import typical_planes

phi = torch.ops.phiquant
ON_A_GPU = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        torch.cuda.is_available() and not ops.compiled_cuda,
        reason=f"the CUDA kernels are not there: {ops.why_not_compiled_cuda}",
    ),
]
__all__ = [
    "INTEGERS",
    "ON_A_GPU",
    "compiled_exact",
    "difficult",
    "layouts",
    "misaligned",
    "on_gpu",
    "phi",
    "random_planes",
    "same",
    "settings",
    "surrounded",
    "typical_planes",
]


def on_gpu(planes: Planes) -> Planes:
    return Planes(*(None if plane is None else plane.cuda() for plane in planes))


def misaligned(planes: Planes) -> Planes:
    """The same planes, each one element into a larger buffer."""
    return Planes(*(None if plane is None else surrounded(plane)[0] for plane in planes))


def surrounded(plane: Tensor, before: int = 1) -> tuple[Tensor, Tensor]:
    """A copy within a buffer of other values, and the buffer."""
    buffer = torch.full((plane.numel() + before + 64,), 0x55, dtype=plane.dtype, device="cuda")
    inner = buffer[before : before + plane.numel()]
    inner.copy_(plane.flatten())
    return inner.view(plane.shape), buffer


def same(actual: Tensor, expected: Tensor) -> bool:
    """Whether they agree in every bit, wherever they are."""
    kind: Any = INTEGERS[expected.dtype]
    return actual.dtype == expected.dtype and torch.equal(
        actual.cpu().view(kind), expected.cpu().view(kind)
    )


def layouts() -> list[Layout]:
    """Every width of both grids, in turn with other group sizes and exponents."""
    sizes, exponents, found = (64, 32, 128), (-10, -112, 112), []
    for grid in ("phi", "golden"):
        for index in (4, 2, 3, 5, 6):
            for deviation in (0, 2, 4, 8):
                at = len(found)
                found.append(
                    Layout(200, index, deviation, sizes[at % 3], grid, exponents[at // 2 % 3])
                )
    return found
