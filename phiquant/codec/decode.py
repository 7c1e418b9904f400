"""Planes to weights: the fixed sequence of fp32 operations that every backend repeats."""

from __future__ import annotations

import torch
from torch import Tensor

from phiquant.codec import cells, exceptions, remainder
from phiquant.codec.denormals import denormals_kept
from phiquant.codec.layout import Layout, Planes
from phiquant.codec.packing import unpack
from phiquant.codec.scales import read_words


def join_codes(planes: Planes, layout: Layout) -> Tensor:
    """Packed planes to int64 codes ``[..., groups * group_size]``."""
    codes = unpack(planes.index, layout.index_bits)
    for plane, bits in (
        (planes.deviation, layout.high_bits),
        (planes.deviation_low, layout.low_bits),
    ):
        if plane is not None and bits:
            codes = codes << bits | unpack(plane, bits)
    return codes


def decode(planes: Planes, layout: Layout, dtype: torch.dtype = torch.float32) -> Tensor:
    """The readable reference of the decoder: ``[..., columns]`` in ``dtype``.

    With a remainder that is the original, rounded if ``dtype`` is narrower; without, the level of
    the deepest code. Magnitudes above the largest finite value of ``dtype`` saturate to it.

    Raises:
        ValueError: the planes do not fit the layout, a scale word is not valid, or the remainder
            plane does not follow from the others.
    """
    layout.check(planes)
    with denormals_kept():
        scale, bend = read_words(planes.scale, layout)
        codes = join_codes(planes, layout).unflatten(-1, (layout.groups, layout.group_size))
        scale, bend = scale.unsqueeze(-1), bend.unsqueeze(-1)
        if layout.stored_dtype is not None:
            cells_of = remainder.subcells(codes, scale, bend, layout, layout.stored_dtype)
            cells_of = remainder.of_rows(cells_of, layout.columns)
            weight = remainder.decode(planes, cells_of, layout.stored_dtype)
        else:
            level = cells.levels(codes, bend, layout, layout.deviation_bits)
            weight = (level * scale).flatten(-2)[..., : layout.columns]
        if layout.stored_dtype != dtype:
            largest = torch.finfo(dtype).max
            weight = weight.float().clamp(-largest, largest).to(dtype)
        return exceptions.put(weight, planes.exceptions)
