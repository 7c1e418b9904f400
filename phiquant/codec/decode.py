"""Planes to weights: the fixed sequence of fp32 operations that every backend repeats."""

from __future__ import annotations

import torch
from torch import Tensor

from phiquant.codec import cells
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

    Magnitudes above the largest finite value of ``dtype`` saturate to it.

    Raises:
        ValueError: the planes do not fit the layout, or a scale word is not valid.
    """
    layout.check(planes)
    with denormals_kept():
        scale, bend = read_words(planes.scale, layout)
        codes = join_codes(planes, layout).unflatten(-1, (layout.groups, layout.group_size))
        level = cells.levels(codes, bend.unsqueeze(-1), layout, layout.deviation_bits)
        weight = (level * scale.unsqueeze(-1)).flatten(-2)[..., : layout.columns]
        largest = torch.finfo(dtype).max
        return weight.clamp(-largest, largest).to(dtype)
