"""Other engines that multiply 16-bit rows with weights of few bits on a GPU.

Each is optional, and given the weight [outputs, inputs] in fp32. A peer that is a whole module
keeps its weights in parameters, which a product is given as operands, so that they can be rotated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.contenders import GROUP, Contender, asymmetric_int4
from benchmarks.unavailable import Unavailable

_HALF = torch.bfloat16
_SUMS_IN_BF16 = 4e-2  # a tolerance
_SMALL = 4096  # bytes: of parameters that are settings, and no weights


def of_module(
    name: str, module: nn.Module, dequantize: Callable[[], Tensor], tolerance: float = 4e-3
) -> Contender:
    """A module whose parameters, but for settings, are a product's operands."""
    kept = {key: of.detach() for key, of in module.named_parameters() if of.nbytes > _SMALL}

    def product(x: Tensor, *operands: Tensor) -> Tensor:
        return functional_call(module, dict(zip(kept, operands, strict=True)), (x,))

    return Contender(name, product, tuple(kept.values()), dequantize, _HALF, tolerance)


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


def gemlite(weight: Tensor) -> Iterator[Contender]:
    """4 bits with a zero for each group; 8 bits with a scale a row.

    Its kernel for one row cuts the columns in up to 256 parts, whose sums it adds up in bf16.
    """
    try:
        from gemlite.helper import A16W8_INT8, A16Wn
    except ImportError as missing:
        raise Unavailable("gemlite: pip install gemlite") from missing
    levels, scale, middle = (part.cuda() for part in asymmetric_int4(weight))
    zero = 8 - middle.float() / scale.float()
    four = A16Wn(device="cuda", dtype=_HALF).from_weights(
        levels.to(torch.uint8), scale, zero.to(_HALF), 4, GROUP
    )
    rounded = zero.to(_HALF).float()[..., None]

    def dequantize_four() -> Tensor:
        groups = levels.unflatten(1, (-1, GROUP))
        return ((groups - rounded) * scale.float()[..., None]).flatten(1)

    yield of_module("gemlite w4 g64", four, dequantize_four, _SUMS_IN_BF16)
    there = weight.cuda()
    steps = there.abs().amax(1, keepdim=True) / 127
    whole = (there / steps).round().to(torch.int8)
    eight = A16W8_INT8(device="cuda", dtype=_HALF).from_weights(whole.clone(), scales=steps)
    yield of_module("gemlite w8", eight, lambda: whole * steps, _SUMS_IN_BF16)


def humming(weight: Tensor) -> Iterator[Contender]:
    """Its kernels are compiled as they are first used, by the nvcc that is there."""
    try:
        from humming.layer import HummingLayer
    except ImportError as missing:
        raise Unavailable("humming: pip install humming-kernels") from missing
    outputs, inputs = weight.shape
    for bits in (4, 8):
        config = {"dtype": f"uint{bits}", "group_size": GROUP}
        layer = HummingLayer(
            shape_n=outputs, shape_k=inputs, weight_config=config, torch_dtype=_HALF
        ).cuda()
        layer.load_from_unquantized(weight.to("cuda", _HALF))
        loaded = {name: of.detach().clone() for name, of in layer.named_parameters()}
        decoded = layer.weight_schema.dequant_tensors(loaded).float()
        layer.transform()
        yield of_module(f"humming w{bits} g64", layer, lambda of=decoded: of)


PEERS = (tinygemm, bitsandbytes_nf4, humming, gemlite)
