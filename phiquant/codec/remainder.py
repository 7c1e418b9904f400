"""The remainder plane: which of a sub-cell's floats the weight was.

Scale, index and deviation say in which sub-cell a weight lies. Only a few floats of its dtype lie
in there; the remainder is the number of those between the weight and the sub-cell's *inner* edge,
the one nearer to zero. How many floats there are follows from the sub-cell, so a remainder's width
is computed and never stored: a reader sums the widths of a block, and reads all its remainders at
once. A block is at most 512 weights of one row, and starts at a byte that two offsets give.

Not every weight is among its sub-cell's floats: infinities and NaN have none, -0.0 compares equal
to an edge whose other side it is on, and at the border of a dtype no scale may cover a group.
:func:`encode` says which, and the caller keeps those bits elsewhere.

No file and no tensor holds this plane yet: the codec comes first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from phiquant.codec import cells
from phiquant.codec.layout import Layout
from phiquant.codec.ranks import first_rank, join_sign, split_sign

BLOCK = 512  # weights
BLOCKS_PER_START = 32
PADDING = 8  # zero bytes after the last block, so that readers may load whole words


class Remainder(NamedTuple):
    """The stored remainders of one weight.

    payload: uint8 ``[n]``, the remainders of block after block, least significant bit first.
    offsets: int16 ``[..., blocks of a row]``, the bits of unsigned bytes from the block's start.
    starts: int64 ``[all blocks / 32]``, the byte at which every 32nd block begins.
    """

    payload: Tensor
    offsets: Tensor
    starts: Tensor


class Subcells(NamedTuple):
    """What the lossy planes say of weights, all of one shape.

    negative: bool, the sign bit of the weight.
    first: int64, the rank of the sub-cell's float that is nearest to zero.
    width: int64, the bits of the remainder: those of the largest.
    """

    negative: Tensor
    first: Tensor
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
    inner, outer = torch.where(below, -upper, lower), torch.where(below, -lower, upper)
    # Below zero a sub-cell holds its outer edge and not its inner one; the last holds both.
    last = codes == (1 << layout.index_bits + depth) - 1
    first = first_rank(inner, below & (inner > 0), dtype)
    count = (first_rank(outer, below | last, dtype) - first).clamp(min=1)
    return Subcells(below ^ (scale < 0), first, bit_length(count - 1))


def zero_code(layout: Layout) -> int:
    """The code of the sub-cell that begins at position 0."""
    return ((2 * layout.curve.half - 1) << layout.deviation_bits) // 2


def bit_length(numbers: Tensor) -> Tensor:
    """Bits of non-negative int64 numbers below 2^53; 0 for 0."""
    return torch.where(numbers > 0, torch.frexp(numbers.double()).exponent, 0).long()


def encode(weight: Tensor, cells_of: Subcells, layout: Layout) -> tuple[Remainder, Tensor]:
    """Remainders of a weight.

    Args:
        weight: ``[..., columns]`` in the dtype that is encoded.
        cells_of: of its codes, ``[..., groups, group_size]``.

    Returns:
        (the remainder plane, bool of weight's shape: True where a weight is not in its sub-cell
        and must be stored as an exception; its remainder is 0).
    """
    negative, ranks = split_sign(weight)
    flat = Subcells(*(part.flatten(-2)[..., : layout.columns] for part in cells_of))
    rest = ranks - flat.first
    astray = (negative != flat.negative) | (rest < 0) | (rest >> flat.width > 0)
    rest = torch.where(astray, 0, rest)
    places, ends = _places(flat.width)
    stream = torch.zeros(8 * (int(ends[-1]) + PADDING), dtype=torch.uint8, device=weight.device)
    for bit in range(int(flat.width.max())):
        has = flat.width > bit
        stream[places[has] + bit] = (rest[has] >> bit & 1).to(torch.uint8)
    weights_of_bits = 1 << torch.arange(8, device=weight.device)
    payload = (stream.view(-1, 8) * weights_of_bits).sum(-1).to(torch.uint8)
    return Remainder(payload, *_offsets(ends, weight.shape[:-1])), astray


def decode(remainder: Remainder, cells_of: Subcells, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The original weight ``[..., columns]``, all bits of it.

    Raises:
        ValueError: an offset does not follow from the widths, or the payload is too short or
            too long.
    """
    flat = Subcells(*(part.flatten(-2)[..., : layout.columns] for part in cells_of))
    places, ends = _places(flat.width)
    wanted = _offsets(ends, flat.width.shape[:-1])
    check(remainder, wanted, int(ends[-1]))
    bits = torch.arange(8, device=places.device)
    stream = (remainder.payload.unsqueeze(-1).long() >> bits & 1).flatten()
    rest = torch.zeros_like(flat.width)
    for bit in range(int(flat.width.max())):
        has = flat.width > bit
        rest[has] |= stream[places[has] + bit] << bit
    return join_sign(flat.negative, flat.first + rest, dtype)


def check(remainder: Remainder, wanted: tuple[Tensor, Tensor], size: int) -> None:
    """Raise ValueError unless the plane is as long as the widths say and its offsets are theirs."""
    for name, stored, right in zip(("offsets", "starts"), remainder[1:], wanted, strict=True):
        if stored.dtype != right.dtype or stored.shape != right.shape:
            raise ValueError(
                f"remainder.{name}: expected {right.dtype} of shape {tuple(right.shape)}, got "
                f"{stored.dtype} of shape {tuple(stored.shape)}"
            )
        if not torch.equal(stored, right):
            block = int((stored != right).flatten().nonzero()[0])
            raise ValueError(
                f"remainder.{name}: number {block} does not follow from the other planes: "
                "they are corrupt, or of two different encodings"
            )
    if remainder.payload.dtype != torch.uint8 or remainder.payload.shape != (size + PADDING,):
        raise ValueError(
            f"remainder.payload: expected torch.uint8 of shape ({size + PADDING},), got "
            f"{remainder.payload.dtype} of shape {tuple(remainder.payload.shape)}"
        )


def _places(width: Tensor) -> tuple[Tensor, Tensor]:
    """Where remainders begin, in bits ``[..., columns]``; where blocks end, in bytes ``[n + 1]``.

    The first end is 0: block b takes the bytes from ``ends[b]`` to ``ends[b + 1]``.
    """
    columns = width.shape[-1]
    blocks = torch.nn.functional.pad(width, (0, -columns % BLOCK)).unflatten(-1, (-1, BLOCK))
    sizes = (blocks.sum(-1) + 7) // 8
    ends = torch.nn.functional.pad(sizes.flatten().cumsum(0), (1, 0))
    begins = ends[:-1].view(sizes.shape)
    places = begins.unsqueeze(-1) * 8 + blocks.cumsum(-1) - blocks
    return places.flatten(-2)[..., :columns], ends


def _offsets(ends: Tensor, leading: torch.Size) -> tuple[Tensor, Tensor]:
    """The offsets ``[*leading, blocks of a row]`` and starts that say where blocks begin."""
    begins = ends[:-1]
    starts = begins[::BLOCKS_PER_START]
    near = begins - starts.repeat_interleave(BLOCKS_PER_START)[: len(begins)]
    # int16 holds the unsigned number's bits
    signed = torch.where(near >= 1 << 15, near - (1 << 16), near).to(torch.int16)
    return signed.view(*leading, -1), starts
