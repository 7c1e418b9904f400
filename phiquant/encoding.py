"""From a weight to its planes: which dtype is stored, and what is encoded."""

from __future__ import annotations

from dataclasses import astuple

import torch
from torch import Tensor

from phiquant import ops as ops  # registers torch.ops.phiquant
from phiquant.checksum import PART
from phiquant.codec import Layout, Planes
from phiquant.codec.denormals import denormals_kept


def encode(weight: Tensor, layout: Layout, fit: str, importance: Tensor | None) -> Planes:
    """The planes of a contiguous weight; absent ones are None.

    Args:
        weight: in ``layout.stored_dtype``, if there is one.
    """
    arguments = astuple(layout)[1:]
    encoded = torch.ops.phiquant.encode(weight, importance, *arguments, fit)
    index, deviation, deviation_low, scale = encoded
    planes = Planes(
        index=index,
        deviation=deviation if layout.high_bits else None,
        deviation_low=deviation_low if layout.low_bits else None,
        scale=scale,
    )
    if layout.stored_dtype is None:
        return planes
    rest = torch.ops.phiquant.encode_remainder(weight, *planes[:4], *arguments)
    remainder, offsets, starts, exceptions = rest
    return planes._replace(
        remainder=remainder,
        offsets=offsets,
        starts=starts,
        exceptions=exceptions if exceptions.shape[0] else None,
    )


def narrowed(weight: Tensor) -> Tensor:
    """``weight`` in the narrowest dtype that has every one of its bits: bf16, fp16 or its own.

    A bf16 checkpoint that was loaded as fp32 holds only bf16 numbers: 16 bits that are zero in
    every weight need not be stored. NaN payloads and the sign of zero count as bits.
    """
    if weight.dtype != torch.float32:
        return weight
    flat = weight.detach().reshape(-1)
    parts = [part.view(torch.int32) for part in flat.split(PART)]
    if not any(bool((part & 0xFFFF).any()) for part in parts):
        bits = torch.cat([(part >> 16).to(torch.int16) for part in parts])
        return bits.view(torch.bfloat16).view(weight.shape)
    with denormals_kept():
        if all(
            torch.equal(part.view(torch.float32).half().float().view(torch.int32), part)
            for part in parts
        ):
            return weight.half()
    return weight
