"""What the planes of a stored weight may hold, beyond their shapes.

Kernels check what they read, so that no plane can make them read elsewhere. This looks through the
small planes before a model is given to anybody, so that a damaged file is not found out later.
"""

from __future__ import annotations

from phiquant.codec import Layout, Planes, exceptions, remainder
from phiquant.codec.scales import BEND_MASK

_PART = 1 << 22  # scale words that are looked at together


def check_contents(planes: Planes, layout: Layout, weights: int) -> None:
    """Raise ValueError, naming the plane, unless the small planes hold what they may.

    Args:
        planes: that fit the layout.
        layout: with a ``stored_dtype`` if the remainder is to be looked at.
        weights: how many the planes are of.
    """
    for words in planes.scale.flatten().split(_PART):
        power = words & 0x7C00
        bad = (power == 0) | (power == 0x7C00)
        if layout.grid == "golden":
            bad |= (words & BEND_MASK) != 0
        if bool(bad.any()):
            raise ValueError("scale: a word is not a normal fp16 number with a bend of its grid")
    if planes.exceptions is not None:
        exceptions.check(planes.exceptions)
        if planes.exceptions.shape[0] and int(planes.exceptions[-1, 0]) >= weights:
            raise ValueError(f"exceptions: a place is not among the {weights} weights")
    if layout.stored_dtype is not None:
        begins = remainder.begins_of(planes)
        remainder.check_inside(planes, begins)
        if int(begins.flatten()[0]) != 0:
            raise ValueError("starts: the first block does not begin at byte 0")
        if bool((begins.flatten().diff() < 0).any()):
            raise ValueError("offsets: a block begins before the one in front of it")
