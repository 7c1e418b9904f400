"""What multiplies rows with a matrix on a GPU; the benchmark checks and times all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.contenders import Contender, Operands, encode, settings
from benchmarks.cuda_peers import PEERS
from phiquant.codec import Layout

CUBLAS = "torch bf16 (cuBLAS)"
phi = torch.ops.phiquant
_HALF = torch.bfloat16


def cublas(weight: Tensor) -> Iterator[Contender]:
    half = weight.to("cuda", _HALF)
    yield Contender(CUBLAS, functional.linear, (half,), half.float, _HALF)


def phiquant(weight: Tensor) -> Iterator[Contender]:
    columns = weight.shape[1]
    for bits in (0, 2, 4, 8):
        layout = Layout(columns, 4, bits, exponent=-10)
        name = f"phiquant index+{bits}" if bits else "phiquant index"
        yield planes_of(weight, name, layout)
    exact = Layout(columns, exponent=-10, stored_dtype=_HALF)
    yield planes_of(weight.to(_HALF), "phiquant exact", exact)


def planes_of(weight: Tensor, name: str, layout: Layout) -> Contender:
    fit = "joint" if layout.deviation_bits else "index"
    planes: Operands = tuple(encode(weight.cuda(), layout, fit))
    arguments = (layout.columns, *settings(layout))

    def product(x: Tensor, *planes: Tensor | None) -> Tensor:
        return phi.linear(x, *planes, None, *arguments)

    @cache
    def dequantize() -> Tensor:
        return phi.decode(*planes, *arguments, torch.float32)

    return Contender(name, product, planes, dequantize, _HALF)


# By the names that `--only` takes. What it is compared with comes first.
BUILDERS: dict[str, Callable[[Tensor], Iterator[Contender]]] = {
    of.__name__: of for of in (cublas, *PEERS, phiquant)
}
