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
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}

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


def noise(*shape: int) -> Tensor:
    """bf16 numbers of any bits: they spread too far for an exact form to be smaller."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 15), 1 << 15, shape, generator=generator)
    return bits.to(torch.int16).view(torch.bfloat16)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two plain tensors are of one dtype and shape and equal bit for bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    octets = (tensor.contiguous().view(INTEGERS[tensor.dtype]) for tensor in (one, other))
    return torch.equal(*octets)


def with_specials(weight: Tensor) -> Tensor:
    """A copy whose first weights are what is hardest to keep: NaN payloads, -0.0, denormals."""
    of = weight.clone()
    bits, finfo = of.view(INTEGERS[of.dtype]).view(-1), torch.finfo(of.dtype)
    infinity = torch.tensor(float("inf"), dtype=of.dtype).view(INTEGERS[of.dtype]).item()
    lowest = torch.iinfo(bits.dtype).min  # the sign bit
    specials = [infinity, infinity + lowest, infinity + 1, infinity + 5 + lowest, lowest, 0, 1]
    specials += [lowest + 1, torch.tensor(finfo.max, dtype=of.dtype).view(bits.dtype).item()]
    count = min(len(specials), bits.numel())
    bits[:count] = torch.tensor(specials[:count], dtype=bits.dtype)
    return of


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
