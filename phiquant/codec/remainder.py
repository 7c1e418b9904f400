"""The remainder plane: which of a sub-cell's floats the weight was.

Scale, index and deviation say in which sub-cell a weight lies. Only a few floats of its dtype lie
in there; the remainder is the number of those between the weight and the sub-cell's *inner* edge,
the one nearer to zero. How many floats there are follows from the sub-cell, so a remainder's width
is computed and never stored: a reader sums the widths of a block, and reads all its remainders at
once. A block is at most 512 weights of one row, and starts at a byte that two offsets give.

Not every weight is among its sub-cell's floats: infinities and NaN have none, and at the border of
a dtype no scale may cover a group.
:func:`encode` says which, and the caller keeps those bits elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from phiquant.codec import cells
from phiquant.codec.layout import BLOCK, BLOCKS_PER_START, PADDING, Layout, Planes
from phiquant.codec.ranks import first_rank, join_sign, split_sign


class Subcells(NamedTuple):
    """What the lossy planes say of weights, all of one shape.

    negative: bool, the sign bit of the weight.
    first: int64, the rank of the sub-cell's float that is nearest to zero.
    count: int64, how many floats the sub-cell holds, at least 1.
    width: int64, the bits of the remainder: those of the largest.
    """

    negative: Tensor
    first: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which sub-cells do not need
    width: Tensor


def subcells(
    codes: Tensor, scale: Tensor, bend: Tensor, layout: Layout, dtype: torch.dtype
) -> Subcells:
    """The floats of ``dtype`` that share a code.

    Args:
        codes: int64 ``[..., group_size]``.
        scale: fp32 signed scales ``[..., 1]``.
        bend: int64 ``[..., 1]``.
        layout: has at least 2 deviation bits, so that zero is an edge.
        dtype: the dtype that was encoded.
    """
    depth = layout.deviation_bits
    lower, upper = (cells.edges(codes + step, bend, layout, depth) * scale.abs() for step in (0, 1))
    below = codes < zero_code(layout)
    inner, outer = torch.where(below, upper, lower).abs(), torch.where(below, lower, upper).abs()
    # Below zero a sub-cell holds its outer edge and not its inner one; the last holds both.
    last = codes == (1 << layout.index_bits + depth) - 1
    first = first_rank(inner, below & (inner > 0), dtype)
    count = (first_rank(outer, below | last, dtype) - first).clamp(min=1)
    return Subcells(below ^ (scale < 0), first, count, bit_length(count - 1))


def of_rows(cells_of: Subcells, columns: int) -> Subcells:
    """From groups ``[..., groups, group_size]`` to rows ``[..., columns]``, without the pad."""
    return Subcells(*(part.flatten(-2)[..., :columns] for part in cells_of))


def zero_code(layout: Layout) -> int:
    """The code of the sub-cell that begins at position 0."""
    return ((2 * layout.curve.half - 1) << layout.deviation_bits) // 2


def bit_length(numbers: Tensor) -> Tensor:
    """Bits of non-negative int64 numbers below 2^53; 0 for 0."""
    return torch.where(numbers > 0, torch.frexp(numbers.double()).exponent, 0).long()


def encode(weight: Tensor, cells_of: Subcells, planes: Planes) -> tuple[Planes, Tensor]:
    """``planes`` with the remainders of a weight, and which weights are astray.

    Args:
        weight: ``[..., columns]`` in the dtype that is encoded.
        cells_of: of its codes, ``[..., columns]``.
        planes: the lossy planes.

    Returns:
        (planes with remainder, offsets and starts; bool of weight's shape: True where a weight is
        not in its sub-cell and must be stored as an exception; its remainder is 0).
    """
    negative, ranks = split_sign(weight)
    rest = ranks - cells_of.first
    astray = (negative != cells_of.negative) | (rest < 0) | (rest >= cells_of.count)
    rest = torch.where(astray, 0, rest)
    sizes, places = _places(cells_of.width)
    ends = torch.nn.functional.pad(sizes.flatten().cumsum(0), (1, 0))
    places = _from_byte(places, ends[:-1].view(sizes.shape))
    stream = torch.zeros(8 * (int(ends[-1]) + PADDING), dtype=torch.uint8, device=weight.device)
    for bit in range(int(cells_of.width.max()) if weight.numel() else 0):
        has = cells_of.width > bit
        stream[places[has] + bit] = (rest[has] >> bit & 1).to(torch.uint8)
    powers = 1 << torch.arange(8, device=weight.device)
    payload = (stream.view(-1, 8) * powers).sum(-1).to(torch.uint8)
    starts = ends[:-1][::BLOCKS_PER_START].clone()
    offsets = ends[:-1] - starts.repeat_interleave(BLOCKS_PER_START)[: ends.numel() - 1]
    offsets = offsets.to(torch.int32).to(torch.int16).view(sizes.shape)  # keeps the low 16 bits
    return planes._replace(remainder=payload, offsets=offsets, starts=starts), astray


def begins_of(planes: Planes) -> Tensor:
    """The byte at which every block begins, int64 ``[..., blocks]``."""
    assert planes.offsets is not None
    assert planes.starts is not None
    starts, near = planes.starts, planes.offsets.long() & 0xFFFF
    if starts.numel() != near.numel():
        starts = starts.repeat_interleave(BLOCKS_PER_START)[: near.numel()]
    return starts.view(near.shape) + near


def decode(planes: Planes, cells_of: Subcells, dtype: torch.dtype) -> Tensor:
    """The original weight ``[..., columns]``, all bits of it but for exceptions.

    Raises:
        ValueError: a block does not lie in the remainder plane, blocks do not follow each other,
            or a remainder is not in its sub-cell; the message names the first such block.
    """
    assert planes.remainder is not None
    sizes, places = _places(cells_of.width)
    begins = begins_of(planes)
    check_blocks(planes, begins, sizes)
    places = _from_byte(places, begins)
    bits = torch.arange(8, device=places.device)
    stream = (planes.remainder.unsqueeze(-1).long() >> bits & 1).flatten()
    rest = torch.zeros_like(cells_of.width)
    for bit in range(int(cells_of.width.max()) if rest.numel() else 0):
        has = cells_of.width > bit
        rest[has] |= stream[places[has] + bit] << bit
    _check_none(rest >= cells_of.count, "holds a remainder that is not in its sub-cell")
    return join_sign(cells_of.negative, cells_of.first + rest, dtype)


def check_blocks(planes: Planes, begins: Tensor, sizes: Tensor) -> None:
    """Raise ValueError unless every block is inside of the plane, and begins where one ends."""
    assert planes.starts is not None
    end = check_inside(planes, begins, sizes)
    if planes.starts.numel() != begins.numel():
        after = torch.cat([begins.flatten()[1:], begins.new_tensor([end])])
        message = "does not end where the next one begins"
        _check_none((begins + sizes).flatten() != after, message)


def check_inside(planes: Planes, begins: Tensor, sizes: Tensor | int = 0) -> int:
    """Raise ValueError unless every block is inside of the plane; returns where the plane ends."""
    assert planes.remainder is not None
    end = planes.remainder.numel() - PADDING
    outside = (begins < 0) | (begins > end - sizes)  # begins + sizes may overflow
    _check_none(outside, "is not inside of the remainder plane")
    return end


def _check_none(bad: Tensor, what: str) -> None:
    if not bool(bad.any()):
        return
    per_block = 1
    if what.startswith("holds"):
        bad = torch.nn.functional.pad(bad, (0, -bad.shape[-1] % BLOCK))
        per_block = BLOCK
    block = int(bad.flatten().nonzero()[0]) // per_block
    raise ValueError(
        f"remainder: block {block} {what}: the planes are corrupt, or of two different encodings"
    )


def _places(width: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of blocks ``[..., blocks]``, and bits ``[..., columns]`` from a block's first byte."""
    columns = width.shape[-1]
    blocks = torch.nn.functional.pad(width, (0, -columns % BLOCK)).unflatten(-1, (-1, BLOCK))
    within = blocks.cumsum(-1) - blocks
    return (blocks.sum(-1) + 7) // 8, within.flatten(-2)[..., :columns]


def _from_byte(places: Tensor, begins: Tensor) -> Tensor:
    """Bits from the block's first byte to bits from the plane's."""
    return places + 8 * begins.repeat_interleave(BLOCK, -1)[..., : places.shape[-1]]
