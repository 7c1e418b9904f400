"""What the tests of tensors, ops and models share: small weights and models, errors, sizes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from phiquant import PhiConfig, PhiTensor

REPOSITORY = Path(__file__).parents[1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

HIDE_LIBRARY = """
import pathlib
exists = pathlib.Path.exists
pathlib.Path.exists = lambda self, **k: self.name != "_C.abi3.so" and exists(self, **k)
"""


def weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal weights of a usual size."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.05).to(dtype)


def compressed(*shape: int, dtype: torch.dtype = torch.float32, **config: Any) -> PhiTensor:
    return PhiTensor.from_hp(weight(*shape, dtype=dtype), PhiConfig(**config))


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


class TiedModel(nn.Module):
    """An embedding, a few equal layers and a head that shares the embedding's weight."""

    def __init__(self, words: int = 100, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, indices: Tensor) -> Tensor:
        x = self.embed(indices)
        for layer in self.layers:
            x = x + functional.relu(layer(x))
        return self.head(x)


def run_python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in the repository's root."""
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
