"""What the codec's tests share: layouts made for a weight, random weights, decoded tiers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from phiquant import codec
from phiquant.codec import Layout, Planes, cells
from phiquant.codec.decode import join_codes


def layout_for(weight: Tensor, **arguments: Any) -> Layout:
    """A layout for ``weight`` with the exponent that phiquant's own writer takes."""
    exponent = codec.exponent_for(weight.abs().max().item())
    return Layout(weight.shape[-1], **{"exponent": exponent, **arguments})


def encoded(weight: Tensor, fit: str = "joint", **arguments: Any) -> tuple[Planes, Layout]:
    layout = layout_for(weight, **arguments)
    return codec.encode(weight, layout, fit), layout


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
