"""The phi-grid: the curve that turns a position into a level between -1 and about 1.

A weight is ``scale * f(position)``. The family comes from the first two terms of Binet's formula,
``sinh(p ln phi)``: a line near zero and a cubic further out, normalised so that ``f(K) = 1``:

    f(p) = p * (a + b * p * p),   a = (1 - B) / K,   b = B / K^3,   K = 2^(index_bits - 1)

``B`` is the *bend*, one of eight numbers made of powers of the golden ratio, from flat to steep.
Every operation is one correctly rounded fp32 operation in the order written in :meth:`Grid.value`,
so the compiled kernels give the same bits (docs/format.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

GRIDS = ("phi", "golden")
INDEX_BITS = (2, 3, 4, 5, 6)
DEVIATION_BITS = (0, 2, 4, 8)

# fp32 values of B and 1 - B: B is phi^-4, phi^-3, phi^-1 / 2, phi^-2, m, 1/2, 1 - m or 1 - phi^-5,
# m = phi^-2 + phi^-6. Both are literals, as 1 - fl32(B) is not fl32(1 - B). K is a power of two,
# so a and b are exact.
BENDS = tuple(
    float.fromhex(text)
    for text in (
        "0x1.2acc96p-3",
        "0x1.e3779cp-3",
        "0x1.3c6ef4p-2",
        "0x1.87221ap-2",
        "0x1.c032e2p-2",
        "0x1.000000p-1",
        "0x1.1fe690p-1",
        "0x1.d1d53ep-1",
    )
)
LINES = tuple(
    float.fromhex(text)
    for text in (
        "0x1.b54cdap-1",
        "0x1.87221ap-1",
        "0x1.61c886p-1",
        "0x1.3c6ef4p-1",
        "0x1.1fe690p-1",
        "0x1.000000p-1",
        "0x1.c032e2p-2",
        "0x1.71560ap-4",
    )
)

# fl32(sinh(h/2 * ln phi)) for h = 0..66: the research note's ladder at integers and half-integers.
LADDER = tuple(
    float.fromhex(text)
    for text in """
    0x0.0p+0 0x1.f18774p-3 0x1.000000p-1 0x1.92826ep-1 0x1.1e377ap+0 0x1.83d402p+0
    0x1.000000p+1 0x1.4cfa4ap+1 0x1.ad5336p+1 0x1.1352c6p+2 0x1.600000p+2 0x1.c12722p+2
    0x1.1e377ap+3 0x1.6c81aap+3 0x1.d00000p+3 0x1.273e10p+4 0x1.77a8d0p+4 0x1.ddedccp+4
    0x1.300000p+5 0x1.82b834p+5 0x1.ebef5ap+5 0x1.38e224p+6 0x1.8e0000p+6 0x1.fa44cap+6
    0x1.41fe68p+7 0x1.99957cp+7 0x1.048000p+8 0x1.4b5c90p+8 0x1.a57fb2p+8 0x1.0c13dap+9
    0x1.550000p+9 0x1.b1c240p+9 0x1.13dff8p+10 0x1.5eeb16p+10 0x1.be6000p+10 0x1.1be61ep+11
    0x1.691ffep+11 0x1.cb5baap+11 0x1.242800p+12 0x1.73a0e4p+12 0x1.d8b800p+12 0x1.2ca75ep+13
    0x1.7e7000p+13 0x1.e677d0p+13 0x1.356600p+14 0x1.898f96p+14 0x1.f49e00p+14 0x1.3e65c0p+15
    0x1.950200p+15 0x1.0196c6p+16 0x1.47a880p+16 0x1.a0c9a4p+16 0x1.0914c0p+17 0x1.513036p+17
    0x1.ace900p+17 0x1.10ca84p+18 0x1.5afee0p+18 0x1.b9629ep+18 0x1.18b9b0p+19 0x1.651692p+19
    0x1.c63920p+19 0x1.20e3f0p+20 0x1.6f7968p+20 0x1.d36f38p+20 0x1.294afcp+21 0x1.7a2994p+21
    0x1.e107b0p+21
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Grid:
    """One grid of ``2^index_bits`` cells.

    Args:
        name: ``"phi"`` (the default, eight bends) or ``"golden"`` (the research note's ladder).
        index_bits: bits of the index, 2 to 6.
    """

    name: str
    index_bits: int

    @property
    def half(self) -> int:
        """K, the position whose level is 1."""
        return 1 << (self.index_bits - 1)

    @property
    def bends(self) -> int:
        """How many bend numbers this grid knows."""
        return len(BENDS) if self.name == "phi" else 1

    def value(self, position: Tensor, bend: Tensor) -> Tensor:
        """The level at ``position``.

        Args:
            position: fp32, any shape, within ``[-K + 1/2, K + 1/2]``.
            bend: int64 bend numbers that broadcast against ``position``.

        Returns:
            fp32 levels of the broadcast shape.

        >>> Grid("phi", 4).value(torch.tensor([-8.0, 0.0, 4.0]), torch.tensor(5)).tolist()
        [-1.0, 0.0, 0.3125]
        """
        if self.name == "golden":
            return self._ladder(position)
        line, cubic = (table.to(position.device)[bend] for table in _coefficients(self.index_bits))
        return (position * position * cubic + line) * position

    def _ladder(self, position: Tensor) -> Tensor:
        """Linear between knots at the integers and half-integers; odd."""
        knots = _knots(self.index_bits).to(position.device)
        doubled = position.abs() * 2
        low = doubled.floor()
        left, right = knots[low.long()], knots[low.long() + 1]
        level = (right - left) * (doubled - low) + left
        return torch.where(position < 0, -level, level)


@cache
def _coefficients(index_bits: int) -> tuple[Tensor, Tensor]:
    half = float(1 << (index_bits - 1))
    lines = torch.tensor(LINES, dtype=torch.float32) / half
    return lines, torch.tensor(BENDS, dtype=torch.float32) / half**3


@cache
def _knots(index_bits: int) -> Tensor:
    """fp32 quotients of two literals, correctly rounded: knot h is the level at h / 2."""
    ladder = torch.tensor(LADDER, dtype=torch.float32)
    return ladder[: (2 << index_bits) // 2 + 3] / ladder[1 << index_bits]
