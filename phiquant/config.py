"""How to compress a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torchao.core.config import AOBaseConfig

from phiquant.codec import FITS, Layout
from phiquant.codec.layout import check_choice


@dataclass(frozen=True)
class PhiConfig(AOBaseConfig):
    """How to compress a weight; the default takes 8.25 bits and holds a 4.25-bit model inside.

    Args:
        index_bits: 2 to 6 bits for the grid cell of a weight.
        deviation_bits: 0, 2, 4 or 8 bits for the place inside the cell.
        group_size: 32, 64 or 128 weights share a 16-bit scale word.
        grid: "phi" (a bend is chosen for every group) or "golden" (the research note's ladder).
        fit: the error that the choice of bend minimises: "index" (of the model that reads the
            index plane alone), "deviation" (of the deepest model) or "joint" (both).

    Raises:
        ValueError: a value is outside of its range; the message names the argument.

    >>> PhiConfig().bits_per_weight
    8.25
    """

    index_bits: int = 4
    deviation_bits: int = 4
    group_size: int = 64
    grid: str = "phi"
    fit: str = "joint"

    def __post_init__(self) -> None:
        self.layout(columns=1, exponent=0)
        check_choice("fit", self.fit, FITS)

    @classmethod
    def checked(cls, config: object) -> PhiConfig:
        """``config`` itself, the default for None, or a TypeError that says what was given."""
        if config is None:
            return cls()
        if not isinstance(config, PhiConfig):
            raise TypeError(f"config: expected a PhiConfig, got {type(config).__name__}")
        return config

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight where the groups are full."""
        return self.index_bits + self.deviation_bits + 16 / self.group_size

    def layout(self, columns: int, exponent: int) -> Layout:
        """The layout of a weight with this many columns."""
        return Layout(
            columns, self.index_bits, self.deviation_bits, self.group_size, self.grid, exponent
        )

    def for_embedding(self) -> PhiConfig:
        """This config for embeddings and output heads: with no less than 4 deviation bits."""
        return replace(self, deviation_bits=max(4, self.deviation_bits))
