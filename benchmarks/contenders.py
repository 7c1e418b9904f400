"""What multiplies rows with a matrix, and the fp32 matrix that each of them stands for.

A new contender is one more function in `BUILDERS`: it gets the fp32 weight and returns
`Contender`s. One whose package is missing raises `Unavailable`, which says how to install it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.bandwidth import last_level_cache
from benchmarks.unavailable import Unavailable
from phiquant.codec import Layout, Planes

GROUP = 64
BF16 = "torch bf16"
FP32 = "torch fp32"
INT8 = "torch int8pack"
INT4 = "torch int4pack g64"
INDEX, EXACT, INT8_ACTIVATION = "phiquant index", "phiquant exact", "phiquant index, int8 act."
_ROTATION = 2  # caches that the copies of one contender fill

phi = torch.ops.phiquant
Operands = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Contender:
    """`product(x, *operands)`, for x [rows, columns] of `dtype`.

    dequantize: the fp32 matrix that the operands stand for.
    tolerance: the error allowed against the fp32 product with it, in units of its rms; ten times
        that for a single element. bf16 results round to 1.7e-3, rounded weights add as much.
    """

    name: str
    product: Callable[..., Tensor]
    operands: Operands
    dequantize: Callable[[], Tensor]
    dtype: torch.dtype = torch.bfloat16
    tolerance: float = 4e-3

    @property
    def read_bytes(self) -> int:
        """Bytes of the weight, scales and all: what memory has to deliver for one product."""
        return sum(t.numel() * t.element_size() for t in self.operands if t is not None)

    def rotating(self, cache: int | None = None) -> Callable[[Tensor], Tensor]:
        """The product with copies of the operands in turn, more than fit in the cache."""
        room = _ROTATION * (last_level_cache() if cache is None else cache)
        many = max(2, -(-room // self.read_bytes))
        copies = [self.operands]
        copies += [
            tuple(None if t is None else t.clone() for t in self.operands) for _ in range(many - 1)
        ]
        turn = cycle(copies)
        return lambda x: self.product(x, *next(turn))


def error(contender: Contender, x: Tensor) -> float:
    """The rms error of its product in units of the fp32 product's rms.

    Raises:
        AssertionError: it, or that of a single element, is above the contender's tolerance.
    """
    found = contender.product(x.to(contender.dtype), *contender.operands).float()
    wanted = functional.linear(x.float(), contender.dequantize())
    unit = wanted.square().mean().sqrt()
    errors = (found - wanted) / unit
    rms, largest = errors.square().mean().sqrt().item(), errors.abs().max().item()
    if not (rms <= contender.tolerance and largest <= 10 * contender.tolerance):
        raise AssertionError(
            f"{contender.name}: {x.shape[0]} rows are off by {rms:.2g} rms"
            f" and {largest:.2g} at most, allowed is {contender.tolerance:g}"
        )
    return rms


def torch_dense(weight: Tensor) -> Iterator[Contender]:
    half = weight.bfloat16()
    yield Contender(BF16, functional.linear, (half,), half.float)
    yield Contender(FP32, functional.linear, (weight,), lambda: weight, torch.float32, 1e-5)


def torch_int8(weight: Tensor) -> Iterator[Contender]:
    scale = (weight.abs().amax(1) / 127).bfloat16()
    levels = (weight / scale.float()[:, None]).round().clamp(-128, 127).to(torch.int8)
    product = torch.ops.aten._weight_int8pack_mm
    yield Contender(INT8, product, (levels, scale), lambda: levels.float() * scale.float()[:, None])


def asymmetric_int4(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor, Tensor]:
    """Levels int32 0..15 like the weight, and a scale and the value of level 8 for each group."""
    groups = weight.unflatten(1, (-1, group))
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).clamp(min=1e-9).bfloat16()
    middle = (low + 8 * scale.float()).bfloat16()
    levels = (groups - middle.float()[..., None]) / scale.float()[..., None] + 8
    return levels.round().clamp(0, 15).int().flatten(1), scale, middle


def torch_int4(weight: Tensor) -> Iterator[Contender]:
    levels, scale, middle = asymmetric_int4(weight)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)
    settings = torch.stack([scale.T, middle.T], dim=-1).contiguous()

    def dequantize() -> Tensor:
        centred = (levels - 8).unflatten(1, (-1, GROUP))
        return (centred * scale.float()[..., None] + middle.float()[..., None]).flatten(1)

    def product(x: Tensor, packed: Tensor, settings: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, settings)

    yield Contender(INT4, product, (packed, settings), dequantize)


def torchao_int8(weight: Tensor) -> Iterator[Contender]:
    """`quantize_` with int8 weights: in eager mode not the raw op, but one that converts first."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight.bfloat16(), requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig(version=2))
    names, context = layer.weight.__tensor_flatten__()
    parts, kind = [getattr(layer.weight, name) for name in names], type(layer.weight)
    size, stride = layer.weight.shape, layer.weight.stride()

    def product(x: Tensor, *parts: Tensor) -> Tensor:
        inner = dict(zip(names, parts, strict=True))
        return functional.linear(x, kind.__tensor_unflatten__(inner, context, size, stride))

    yield Contender(
        "torchao int8, eager", product, tuple(parts), lambda: layer.weight.dequantize().float()
    )


def bitsandbytes_nf4(weight: Tensor) -> Iterator[Contender]:
    """NF4 in the layout of its fused kernel, which `Linear4bit` changes to at its first call.

    `kernels` from PyPI would fetch another build of the kernel; this is the one of the wheel.
    """
    try:
        import bitsandbytes
        from bitsandbytes import functional as nf4
    except ImportError as missing:
        raise Unavailable("bitsandbytes NF4: pip install bitsandbytes") from missing
    if not nf4.has_avx512bf16():
        raise Unavailable("bitsandbytes NF4: its fused CPU kernel needs AVX512-BF16")
    codes, state = nf4.quantize_4bit(weight.bfloat16(), blocksize=GROUP, quant_type="nf4")
    state.absmax = state.absmax.bfloat16().float()  # as the fused layout rounds it
    decoded = nf4.dequantize_4bit(codes, state).float()
    packed, state = nf4._convert_weight_packed_for_cpu(codes, state)

    def product(x: Tensor, packed: Tensor, absmax: Tensor) -> Tensor:
        state.absmax = absmax
        return bitsandbytes.matmul_4bit(x, packed, quant_state=state)

    yield Contender("bitsandbytes NF4", product, (packed, state.absmax), lambda: decoded)


def settings(layout: Layout) -> tuple[Any, ...]:
    bits = (layout.index_bits, layout.deviation_bits, layout.group_size)
    return *bits, layout.grid, layout.exponent, layout.stored_dtype


def encode(weight: Tensor, layout: Layout, fit: str = "joint") -> Planes:
    planes = phi.encode(weight, None, *settings(layout), fit)
    lossy = [plane if plane.shape[-1] else None for plane in planes]
    if layout.stored_dtype is None:
        return Planes(*lossy)
    exact = phi.encode_remainder(weight, *lossy, *settings(layout))
    return Planes(*lossy, *exact[:3])  # no infinities here


def planes_of(weight: Tensor, name: str, layout: Layout, fit: str, int8: bool = False) -> Contender:
    """Called as `nn.Linear` calls it: planes are prepared once, for every copy of them."""
    planes, columns = encode(weight, layout, fit), layout.columns
    prepared: dict[int, Tensor] = {}

    def product(x: Tensor, *planes: Tensor) -> Tensor:
        which = planes[0].data_ptr()
        if which not in prepared:
            prepared[which] = phi._prepare(*planes, columns, *settings(layout), int8)
        return phi._prepared_linear(x, prepared[which], None)

    def dequantize() -> Tensor:
        return phi.decode(*planes, columns, *settings(layout), torch.float32)

    return Contender(name, product, tuple(planes), dequantize)


def int8_activations(weight: Tensor) -> Contender:
    """The index plane with rows of x rounded to int8: off by about a hundredth."""
    layout = Layout(weight.shape[1], 4, 0, exponent=-10)
    plain = planes_of(weight, INT8_ACTIVATION, layout, "index", int8=True)
    return replace(plain, tolerance=0.03)


def phiquant(weight: Tensor) -> Iterator[Contender]:
    columns = weight.shape[1]
    for bits in (0, 2, 4, 8):
        layout = Layout(columns, 4, bits, exponent=-10)
        name = f"{INDEX}+{bits}" if bits else INDEX
        yield planes_of(weight, name, layout, "joint" if bits else "index")
    yield int8_activations(weight)
    layout = Layout(columns, exponent=-10, stored_dtype=torch.bfloat16)
    yield planes_of(weight.bfloat16(), EXACT, layout, "joint")


BUILDERS: tuple[Callable[[Tensor], Iterator[Contender]], ...] = (
    torch_dense,
    torch_int8,
    torch_int4,
    torchao_int8,
    bitsandbytes_nf4,
    phiquant,
)


def build(
    weight: Tensor, builders: Sequence[Callable[[Tensor], Iterator[Contender]]] = BUILDERS
) -> tuple[list[Contender], list[str]]:
    """Contenders for the weight [outputs, inputs], and for each that is missing, why."""
    found: list[Contender] = []
    missing: list[str] = []
    for builder in builders:
        try:
            found += builder(weight)
        except Unavailable as reason:
            missing.append(str(reason))
    return found, missing
