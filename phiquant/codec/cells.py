"""Cells and sub-cells: the codes of weights on a scaled grid, and the levels of codes.

A *code* joins index and deviation: ``(k + K - 1) << d | j``. Codes ascend with the position, so
the sub-cell of a weight is the largest code whose lower edge does not exceed the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phiquant.codec.layout import Layout

SMALLEST_FLOAT = 2.0**-149


def edges(codes: Tensor, bend: Tensor, layout: Layout, bits: int) -> Tensor:
    """fp32 lower edges of sub-cells at scale 1; ``bits`` deviation bits are read."""
    start = codes.float() * 0.5**bits - (layout.curve.half - 0.5)
    return layout.curve.value(start, bend)


def levels(codes: Tensor, bend: Tensor, layout: Layout, bits: int) -> Tensor:
    """fp32 levels of codes at scale 1: the middle, by position, of the sub-cell (k if bits = 0)."""
    position = (codes.float() + 0.5) * 0.5**bits - (layout.curve.half - 0.5)
    return layout.curve.value(position, bend)


def find(weight: Tensor, scale: Tensor, bend: Tensor, layout: Layout) -> Tensor:
    """The codes of weights. -0.0 sorts below +0.0, as no other number lies between them.

    Args:
        weight: fp32 ``[groups, group_size]``.
        scale: fp32 signed scales ``[groups, 1]``.
        bend: int64 ``[groups, 1]``.

    Returns:
        int64 codes of weight's shape. A weight beyond the grid gets the nearest code.
    """
    weight = torch.where(scale < 0, -weight, weight)
    weight = torch.where((weight == 0) & weight.signbit(), -SMALLEST_FLOAT, weight)
    code = torch.zeros_like(weight, dtype=torch.int64)
    for bit in reversed(range(layout.index_bits + layout.deviation_bits)):
        higher = code | 1 << bit
        edge = edges(higher, bend, layout, layout.deviation_bits) * scale.abs()
        code = torch.where(edge <= weight, higher, code)
    return code
