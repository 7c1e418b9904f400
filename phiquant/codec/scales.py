"""Scale words: 16 bits that hold a group's signed scale and its bend.

A word is a normal fp16 number whose 3 lowest bits are the bend number; the scale is the word with
those bits masked, times ``2^exponent``. So scales have 7 mantissa bits and multiply exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phiquant.codec.layout import EXPONENTS, Layout

BEND_MASK = 7
USUAL_EXPONENT = -10
SMALLEST = 2.0**-14  # the smallest normal fp16
LARGEST = float.fromhex("0x1.fep+15")  # the largest fp16 whose 3 lowest bits are zero


def exponent_for(absmax: float) -> int:
    """The exponent for a tensor whose largest magnitude is ``absmax``.

    Nearly always the usual one, so that layers and shards agree and torch.compile sees one
    constant: it holds scales from 2^-24 to 63. Otherwise the one that puts the largest scale a
    tensor can need near the top of fp16; a scale is at most 2.25 absmax (two index bits, steepest
    bend), and 2.25 * 2^14 < 65280.
    """
    wanted = math.frexp(absmax)[1] - 14
    if absmax == 0 or USUAL_EXPONENT - 15 <= wanted <= USUAL_EXPONENT:
        return USUAL_EXPONENT
    return min(max(wanted, EXPONENTS[0]), EXPONENTS[-1])


def power_of_two(exponent: int) -> float:
    return math.ldexp(1.0, exponent)


def smallest_scale(layout: Layout) -> float:
    """The smallest scale a word can say."""
    return SMALLEST * power_of_two(layout.exponent)


def read_words(words: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Scale words to (fp32 signed scales, int64 bend numbers), both of the words' shape.

    Raises:
        ValueError: a word is not a normal fp16 number, or its bend is not one of the grid's.
    """
    bits = words.to(torch.int32) & 0xFFFF
    magnitude = bits >> 10 & 31
    bend = bits & BEND_MASK
    if not _is_tracing(words) and bool(
        ((magnitude == 0) | (magnitude == 31) | (bend >= layout.curve.bends)).any()
    ):
        raise ValueError(
            f"scale: a word is not a normal fp16 number with a bend below {layout.curve.bends} "
            f"(grid {layout.grid!r})"
        )
    half = (bits - bend).to(torch.int16).view(torch.float16)
    return half.float() * power_of_two(layout.exponent), bend.long()


def smallest_words(
    above: Tensor, below: Tensor, bend: int, layout: Layout
) -> tuple[Tensor, Tensor]:
    """The smallest scales whose grid covers every weight of a group.

    Args:
        above: fp32, the largest weight of each group in the direction of the long end, >= 0.
        below: fp32, the largest in the other direction, >= 0.
        bend: the bend number.

    Returns:
        (int32 word magnitudes without bend bits, fp32 scales). A group that no word covers (only
        at the border of fp32) gets the largest word, and its weights saturate.
    """
    grid, unit = layout.curve, power_of_two(layout.exponent)
    ends = torch.tensor([grid.half + 0.125, grid.half - 0.5], device=above.device)
    top, bottom = grid.value(ends, torch.tensor(bend, device=above.device))
    needed = torch.maximum(above / top, below / bottom) / unit
    # A float with 7 mantissa bits is an fp32 whose low 16 bits are zero: round up to the next.
    rounded = ((needed.view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)
    rounded = rounded.clamp(SMALLEST, LARGEST)
    uncovered = (rounded * unit * top < above) | (rounded * unit * bottom < below)
    step = uncovered.to(torch.int32) << 16
    rounded = (rounded.view(torch.int32) + step).view(torch.float32).clamp(max=LARGEST)
    return rounded.half().view(torch.int16).to(torch.int32), rounded * unit


def _is_tracing(tensor: Tensor) -> bool:
    return torch.compiler.is_compiling() or tensor.is_meta
