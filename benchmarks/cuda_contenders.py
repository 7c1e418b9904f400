"""What multiplies rows with a matrix on a GPU; the benchmark checks and times all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.contenders import Contender, Operands, asymmetric_int4, encode, settings
from benchmarks.unavailable import Unavailable
from phiquant.codec import Layout

GROUP = 64
CUBLAS = "torch bf16 (cuBLAS)"
phi = torch.ops.phiquant
_HALF = torch.bfloat16


def cublas(weight: Tensor) -> Iterator[Contender]:
    half = weight.to("cuda", _HALF)
    yield Contender(CUBLAS, functional.linear, (half,), half.float, _HALF)


def tinygemm(weight: Tensor) -> Iterator[Contender]:
    levels, scale, middle = asymmetric_int4(weight)
    pairs = (levels[:, ::2] << 4 | levels[:, 1::2]).to("cuda", torch.uint8)
    packed = torch._convert_weight_to_int4pack(pairs, 8)
    both = torch.stack([scale.T, middle.T], dim=-1).contiguous().cuda()

    def dequantize() -> Tensor:
        centred = (levels - 8).unflatten(1, (-1, GROUP))
        return (centred * scale.float()[..., None] + middle.float()[..., None]).flatten(1).cuda()

    def product(x: Tensor, packed: Tensor, both: Tensor) -> Tensor:
        return torch._weight_int4pack_mm(x, packed, GROUP, both)

    yield Contender("torch int4pack g64", product, (packed, both), dequantize, _HALF)


def bitsandbytes_nf4(weight: Tensor) -> Iterator[Contender]:
    try:
        import bitsandbytes
        from bitsandbytes import functional as nf4
    except ImportError as missing:
        raise Unavailable("bitsandbytes NF4: pip install bitsandbytes") from missing
    codes, state = nf4.quantize_4bit(weight.to("cuda", _HALF), blocksize=GROUP, quant_type="nf4")

    def product(x: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
        state.absmax = absmax
        return bitsandbytes.matmul_4bit(x, codes.t(), quant_state=state)

    decoded = nf4.dequantize_4bit(codes, state).float()
    yield Contender("bitsandbytes NF4", product, (codes, state.absmax), lambda: decoded, _HALF)


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
    planes = encode(weight, layout, fit)
    there: Operands = tuple(None if plane is None else plane.cuda() for plane in planes)
    arguments = (layout.columns, *settings(layout))

    def product(x: Tensor, *planes: Tensor | None) -> Tensor:
        return phi.linear(x, *planes, None, *arguments)

    @cache
    def dequantize() -> Tensor:
        return phi.decode(*there, *arguments, torch.float32)

    return Contender(name, product, there, dequantize, _HALF)


BUILDERS: tuple[Callable[[Tensor], Iterator[Contender]], ...] = (
    cublas,
    tinygemm,
    bitsandbytes_nf4,
    phiquant,
)
