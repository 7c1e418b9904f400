"""Wrote tests/data/golden_v1: a checkpoint of format version 1 that must be readable for ever.

Never run this again for version 1: what is committed is what people hold in their files. Run it
with another folder when there is a version 2: ``python tests/data/make_golden.py FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import phiquant
from phiquant import PhiConfig, PhiTensor

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


def weight(*shape: int, dtype: torch.dtype = BFLOAT16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * 0.05).to(dtype)


def special(dtype: torch.dtype) -> Tensor:
    """With infinities, NaN, zeros of both signs and the smallest denormal."""
    of = weight(2, 520, dtype=dtype)
    of[0, :5] = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -0.0])
    of[1, 7] = torch.nextafter(torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype))[0]
    of[1, 519] = float("nan")
    return of


def compressed(of: Tensor, **options: Any) -> PhiTensor:
    storage = {key: options.pop(key) for key in ("transposed", "column_dims") if key in options}
    return PhiTensor.from_hp(of, PhiConfig(**options), **storage)


WEIGHTS: dict[str, Callable[[], PhiTensor]] = {
    "lossy_4_4": lambda: compressed(weight(6, 70)),
    "lossy_5_8": lambda: compressed(weight(6, 70), index_bits=5, deviation_bits=8, group_size=32),
    "lossy_4_0": lambda: compressed(weight(6, 70, dtype=FLOAT16), deviation_bits=0),
    "lossy_2_2": lambda: compressed(weight(3, 130), index_bits=2, deviation_bits=2, group_size=128),
    "golden": lambda: compressed(weight(3, 70, dtype=FLOAT32), grid="golden", fit="index"),
    "golden_exact": lambda: compressed(weight(3, 70), grid="golden", exact=True),
    "exact_bfloat16": lambda: compressed(special(BFLOAT16), exact=True),
    "exact_float16": lambda: compressed(special(FLOAT16), exact=True, fit="exact"),
    "exact_float32": lambda: compressed(
        special(FLOAT32), index_bits=5, deviation_bits=8, exact=True
    ),
    "exact_blocks": lambda: compressed(weight(40, 33), exact=True),
    "narrowed": lambda: compressed(weight(3, 70).float(), index_bits=3, exact=True),
    "large": lambda: compressed(weight(3, 70, dtype=FLOAT32) * 2.0**100),
    "transposed": lambda: compressed(weight(70, 6), transposed=True, exact=True),
    "convolution": lambda: compressed(weight(6, 4, 3, 3), column_dims=3, exact=True, index_bits=6),
    "experts": lambda: compressed(weight(2, 3, 70), exact=True),
    "experts_transposed": lambda: compressed(weight(2, 70, 3), transposed=True),
}


class Golden(nn.Module):
    """All kinds of weights, one of them under two names, and plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        for name, make in WEIGHTS.items():
            setattr(self, name, nn.Parameter(make(), requires_grad=False))
        self.inner = nn.Module()
        self.inner.weight = self.lossy_4_4
        self.bias = nn.Parameter(torch.arange(3.0))
        self.register_buffer("steps", torch.tensor([1, 2, 3]))


def decodes(model: nn.Module) -> dict[str, Tensor]:
    """Every weight at every tier as "name/tier", in the dtype that it claims, as it was decoded."""
    found = {}
    for name in WEIGHTS:
        tensor: PhiTensor = getattr(model, name)
        found[f"{name}/index"] = tensor.at(0).dequantize()
        found[f"{name}/deviation"] = tensor.at(tensor.deviation_bits).dequantize()
        if tensor.deviation_bits == 8:
            found[f"{name}/first deviation"] = tensor.at(4).dequantize()
        if tensor.is_exact:
            found[f"{name}/exact"] = tensor.dequantize()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def main(folder: Path) -> None:
    if folder.exists():
        raise SystemExit(f"{folder}: is there; what is committed is never written again")
    model = Golden()
    phiquant.save(model, folder, max_shard_size="14KB")
    save_file(decodes(model), folder / "expected.decodes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
