"""What the codec's tests share: layouts made for a weight, random weights, decoded tiers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from phiquant import codec
from phiquant.codec import Layout, Planes, cells
from phiquant.codec.decode import join_codes

INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
# bits of exponent and mantissa
FIELDS = {torch.bfloat16: (8, 7), torch.float16: (5, 10), torch.float32: (8, 23)}


def layout_for(weight: Tensor, **arguments: Any) -> Layout:
    """A layout for ``weight`` with the exponent that phiquant's own writer takes."""
    finite = weight[weight.isfinite()].float().abs()
    exponent = codec.exponent_for(finite.max().item() if finite.numel() else 0.0)
    return Layout(weight.shape[-1], **{"exponent": exponent, **arguments})


def encoded(weight: Tensor, fit: str = "joint", **arguments: Any) -> tuple[Planes, Layout]:
    layout = layout_for(weight, **arguments)
    return codec.encode(weight, layout, fit), layout


def exact(weight: Tensor, fit: str = "joint", **arguments: Any) -> tuple[Planes, Layout]:
    """All planes of an exact weight, and their layout."""
    layout = layout_for(weight, stored_dtype=weight.dtype, **arguments)
    return codec.encode_remainder(weight, codec.encode(weight, layout, fit), layout), layout


def bits(weight: Tensor) -> Tensor:
    """The bits of floats as signed integers; what bit-equal means."""
    return weight.view(INTEGERS[weight.dtype])


def floats(patterns: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`bits`: int64 patterns of either sign, or counted from 0, to floats."""
    width = sum(FIELDS[dtype]) + 1
    signed = torch.where(patterns >= 1 << width - 1, patterns - (1 << width), patterns)
    return signed.to(INTEGERS[dtype]).view(dtype)


def specials(dtype: torch.dtype) -> Tensor:
    """What a group should not mix: maxima, denormals, zeros, infinities, NaN, of both signs."""
    exponent, mantissa = FIELDS[dtype]
    infinity = (1 << exponent) - 1 << mantissa
    one = (1 << exponent - 1) - 1 << mantissa
    quiet = 1 << mantissa - 1
    magnitudes = [
        0, 1, (1 << mantissa) - 1, 1 << mantissa, one, one + 1, infinity - 1,
        infinity, infinity + 1, infinity + quiet - 1, infinity + quiet, infinity + 2 * quiet - 1,
    ]  # fmt: skip
    positive = torch.tensor(magnitudes)
    return floats(torch.cat([positive, positive + (1 << exponent + mantissa)]), dtype)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def heavy_tailed(*shape: int, seed: int = 0) -> Tensor:
    weight = normal(*shape, seed=seed)
    return weight.sign() * weight.abs() ** 2.5


def index_tier(planes: Planes, layout: Layout) -> Tensor:
    """The fp32 decode of the index plane alone."""
    return codec.decode(
        Planes(planes.index, None, None, planes.scale), with_deviation_bits(layout, 0)
    )


def with_deviation_bits(layout: Layout, bits: int) -> Layout:
    return Layout(
        layout.columns, layout.index_bits, bits, layout.group_size, layout.grid, layout.exponent
    )


def sub_cells(planes: Planes, layout: Layout) -> tuple[Tensor, Tensor]:
    """fp32 ends of every weight's sub-cell, ascending, ``[..., columns]``."""
    scale, bend = codec.read_words(planes.scale, layout)
    codes = join(planes, layout).unflatten(-1, (layout.groups, layout.group_size))
    low, high = (
        cells.edges(codes + step, bend.unsqueeze(-1), layout, layout.deviation_bits)
        * scale.unsqueeze(-1)
        for step in (0, 1)
    )
    ends = (torch.minimum(low, high), torch.maximum(low, high))
    return tuple(end.flatten(-2)[..., : layout.columns] for end in ends)


def join(planes: Planes, layout: Layout) -> Tensor:
    """Codes ``[..., groups * group_size]``, the pad included."""
    return join_codes(planes, layout)


def group_errors(weight: Tensor, decoded: Tensor, layout: Layout) -> Tensor:
    """fp64 sums of squared errors, one a group, ``[..., groups]``."""
    squares = (decoded.double() - weight.double()).square()
    padding = layout.groups * layout.group_size - layout.columns
    squares = torch.nn.functional.pad(squares, (0, padding))
    return squares.unflatten(-1, (layout.groups, layout.group_size)).sum(-1)


def same_planes(first: Planes, second: Planes) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(first, second, strict=True)
    )
