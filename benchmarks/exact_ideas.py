"""Ideas to make the remainder plane smaller, counted on weights' true sub-cells.

All are bits a weight of the whole exact tier. Rank counts follow from scale, index and deviation,
so each figure is what a format would take, not an estimate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from phiquant.codec import Layout, Planes, read_words, remainder
from phiquant.codec.decode import join_codes
from phiquant.codec.layout import BLOCK, BLOCKS_PER_START

OFFSET_BITS, START_BITS = 16, 64
_HALF = 30

Counts = Tensor  # int64 [rows, columns]: how many floats share the weight's sub-cell
Bits = Callable[[Counts], float]  # bits of all remainders of a weight


def counts_of(planes: Planes, layout: Layout) -> Counts:
    """How many floats of the stored dtype share a weight's sub-cell, int64 ``[..., columns]``."""
    assert layout.stored_dtype is not None
    scale, bend = read_words(planes.scale, layout)
    codes = join_codes(planes, layout).unflatten(-1, (layout.groups, layout.group_size))
    found = remainder.subcells(
        codes, scale.unsqueeze(-1), bend.unsqueeze(-1), layout, layout.stored_dtype
    )
    return remainder.of_rows(found, layout.columns).count


def bound(counts: Counts) -> float:
    """No coder that takes all floats of a sub-cell for equally likely does better."""
    return counts.double().log2().sum().item()


def widths(counts: Counts, together: int = 1) -> Tensor:
    """Whole bits of remainders, where so many neighbours in a row are one number in mixed radix.

    Args:
        counts: of up to 2^15 floats each.
        together: 1, 2 or 4.

    Returns:
        int64 ``[rows, ceil(columns / together)]``.
    """
    padded = torch.nn.functional.pad(counts, (0, -counts.shape[-1] % together), value=1)
    largest = padded.unflatten(-1, (-1, together)).prod(-1) - 1
    high = largest >> _HALF  # in halves: fp64, which bit_length goes through, would round
    length = remainder.bit_length
    return torch.where(high > 0, length(high) + _HALF, length(largest & (1 << _HALF) - 1))


def stored(counts: Counts, together: int = 1, block: int = BLOCK) -> float:
    """Bits with blocks that begin at bytes, an offset for each and a start for every 32 of them."""
    width = widths(counts, together)
    per_block = block // together
    padded = torch.nn.functional.pad(width, (0, -width.shape[-1] % per_block))
    octets = (padded.unflatten(-1, (-1, per_block)).sum(-1) + 7) // 8
    starts = -(-octets.numel() // BLOCKS_PER_START)
    return 8.0 * octets.sum().item() + OFFSET_BITS * octets.numel() + START_BITS * starts


def whole_rows(counts: Counts) -> float:
    """A block is a row, and has an offset: decoding in parallel needs a sum over the whole row."""
    return stored(counts, block=counts.shape[-1])


IDEAS: dict[str, Bits] = {
    "as stored: blocks of 512": stored,
    "blocks of 128": lambda counts: stored(counts, block=128),
    "blocks of 256": lambda counts: stored(counts, block=256),
    "blocks of 1024": lambda counts: stored(counts, block=1024),
    "blocks of a row": whole_rows,
    "no offsets at all": lambda counts: float(widths(counts).sum()),
    "pairs in mixed radix, blocks of 512": lambda counts: stored(counts, 2),
    "fours in mixed radix, blocks of 512": lambda counts: stored(counts, 4),
    "fours in mixed radix, no offsets": lambda counts: float(widths(counts, 4).sum()),
    "bound: the sum of log2 of counts": bound,
}
