"""Planes put together: parts of one weight, or of several, along any of its dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phiquant.codec.layout import BLOCKS_PER_START, PADDING, Planes
from phiquant.codec.remainder import begins_of
from phiquant.codec.views import tightened

_MAGNITUDE, _EXPONENT_BITS = 0x7FFF, 10


def join(parts: Sequence[Planes], columns: Sequence[int], dim: int) -> Planes:
    """Planes of the weight that results from laying weights next to each other.

    Args:
        parts: of one layout but for the columns, with equal exponents; at least one.
        columns: of every part. Along the last dimension all but the last part must have whole
            groups, and whole blocks of 512 if there is a remainder.
        dim: of the stored weight ``[..., columns]``, not negative.
    """
    index = torch.cat([part.index for part in parts], dim)
    lossy = Planes(
        index=index,
        deviation=_joined([part.deviation for part in parts], dim),
        deviation_low=_joined([part.deviation_low for part in parts], dim),
        scale=torch.cat([part.scale for part in parts], dim),
        exceptions=_joined_exceptions(parts, columns, dim),
    )
    return lossy if parts[0].remainder is None else _with_blocks(lossy, parts, dim)


def shift_exponent(planes: Planes, by: int) -> Planes | None:
    """The same scales said with an exponent that is larger by ``by``; None if words cannot."""
    if by == 0:
        return planes
    words = planes.scale.to(torch.int32)
    moved = ((words & _MAGNITUDE) >> _EXPONENT_BITS) - by
    if bool(((moved < 1) | (moved > 30)).any()):
        return None
    words = (words - (by << _EXPONENT_BITS)).to(torch.int16)
    return planes._replace(scale=words)


def repeat_row(row: Planes, leading: Sequence[int]) -> Planes:
    """Planes ``[*leading, columns]`` of a weight all whose rows are ``row``, ``[columns]``."""
    index, deviation, deviation_low, scale = (
        None if plane is None else plane.expand(*leading, -1).contiguous() for plane in row[:4]
    )
    assert index is not None
    assert scale is not None
    planes = Planes(index, deviation, deviation_low, scale)
    if row.remainder is None:
        return planes
    count = torch.Size(leading).numel()
    payload = row.remainder[: row.remainder.numel() - PADDING]
    first = torch.arange(count, device=payload.device) * payload.numel()
    begins = (first.unsqueeze(-1) + begins_of(row)).view(*leading, -1)
    planes = planes._replace(remainder=torch.cat([payload.repeat(count), row.remainder[-PADDING:]]))
    return _placed(planes, begins, tight=True)


def _joined(planes: list[Tensor | None], dim: int) -> Tensor | None:
    present = [plane for plane in planes if plane is not None]
    return torch.cat(present, dim) if present else None


def _with_blocks(lossy: Planes, parts: Sequence[Planes], dim: int) -> Planes:
    """``lossy`` with all payloads, one after the other, and the blocks where they are now."""
    payloads, begins, base = [], [], 0
    for part in parts:
        assert part.remainder is not None
        payloads.append(part.remainder[: part.remainder.numel() - PADDING])
        begins.append(begins_of(part) + base)
        base += payloads[-1].numel()
    padding = payloads[0].new_zeros(PADDING)
    joined = torch.cat(begins, dim)
    lossy = lossy._replace(remainder=torch.cat([*payloads, padding]))
    return _placed(lossy, joined, tight=_follow(parts, begins, dim))


def _placed(planes: Planes, begins: Tensor, tight: bool) -> Planes:
    """``planes`` with blocks that begin at these bytes; ``tight`` if they follow each other."""
    short = tightened(begins) if tight else None
    if short is not None:
        return planes._replace(offsets=short[0], starts=short[1])
    return planes._replace(
        offsets=torch.zeros_like(begins, dtype=torch.int16),
        starts=begins.flatten().contiguous(),
    )


def _follow(parts: Sequence[Planes], begins: Sequence[Tensor], dim: int) -> bool:
    """Whether the blocks of all parts follow each other without a gap, as those of one weight."""
    base = 0
    for part, begin in zip(parts, begins, strict=True):
        assert part.remainder is not None
        assert part.starts is not None
        if begin.shape[:dim].numel() != 1 or part.starts.numel() != _tight_starts(begin):
            return False
        if begin.numel() and int(begin.flatten()[0]) != base:
            return False
        base += part.remainder.numel() - PADDING
    return True


def _tight_starts(begins: Tensor) -> int:
    return -(-begins.numel() // BLOCKS_PER_START)


def _joined_exceptions(parts: Sequence[Planes], columns: Sequence[int], dim: int) -> Tensor | None:
    if all(part.exceptions is None for part in parts):
        return None
    shapes = [(*part.scale.shape[:-1], c) for part, c in zip(parts, columns, strict=True)]
    total, before, places, bits = sum(shape[dim] for shape in shapes), 0, [], []
    for part, shape in zip(parts, shapes, strict=True):
        if part.exceptions is not None:
            inner = torch.Size(shape[dim + 1 :]).numel()
            outer, rest = part.exceptions[:, 0] // (shape[dim] * inner), part.exceptions[:, 0]
            rest = rest % (shape[dim] * inner)
            places.append(outer * total * inner + before * inner + rest)
            bits.append(part.exceptions[:, 1])
        before += shape[dim]
    joined = torch.cat(places)
    order = joined.argsort(stable=True)
    return torch.stack([joined[order], torch.cat(bits)[order]], dim=-1)
