"""From a weight to its planes: which dtype is stored, and what is encoded."""

from __future__ import annotations

from dataclasses import astuple

import torch
from torch import Tensor

from phiquant import ops as ops  # registers torch.ops.phiquant
from phiquant.checksum import part_size
from phiquant.codec import Layout, Planes
from phiquant.codec.denormals import denormals_kept
from phiquant.codec.exceptions import from_widened_bits, widened_bits


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
    parts = weight.detach().reshape(-1).split(part_size(weight.device))
    with denormals_kept():
        narrow = _as_bfloat16(parts) or _as_float16(parts)
    return weight if narrow is None else torch.cat(narrow).view(weight.shape)


def _as_bfloat16(parts: tuple[Tensor, ...]) -> list[Tensor] | None:
    """The same numbers in bf16, or None if a bit would be lost."""
    bits = [part.view(torch.int32) for part in parts]
    if any(bool((part & 0xFFFF).any()) for part in bits):
        return None
    return [(part >> 16).to(torch.int16).view(torch.bfloat16) for part in bits]


def _as_float16(parts: tuple[Tensor, ...]) -> list[Tensor] | None:
    """The same numbers in fp16, or None if a bit would be lost; by integers, for NaN payloads."""
    halves = []
    for part in parts:
        bits = widened_bits(part)
        halves.append(from_widened_bits(bits, torch.float16))
        if not torch.equal(widened_bits(halves[-1]), bits):
            return None
    return halves
