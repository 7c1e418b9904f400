"""How to compress a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torchao.core.config import AOBaseConfig

from phiquant.codec import Layout
from phiquant.codec.encode import check_fit


@dataclass(frozen=True)
class PhiConfig(AOBaseConfig):
    """How to compress a weight; the default takes 8.25 bits and holds a 4.25-bit model inside.

    Args:
        index_bits: 2 to 6 bits for the grid cell of a weight.
        deviation_bits: 0, 2, 4 or 8 bits for the place inside the cell.
        group_size: 32, 64 or 128 weights share a 16-bit scale word.
        grid: "phi" (a bend is chosen for every group) or "golden" (the research note's ladder).
        fit: what the choice of bend minimises: the error "index" (of the model that reads the
            index plane alone), "deviation" (of the deepest lossy model) or "joint" (both), or
            "exact" (both, but above all the size of the remainder; needs ``exact``).
        exact: also keep what is left to the original, so that the deepest model is the original
            bit for bit; needs at least 2 deviation bits.

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
    exact: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.exact, bool):
            raise ValueError(f"exact must be True or False, got {self.exact!r}")
        layout = self.layout(columns=1, exponent=0)
        if self.exact and self.deviation_bits == 0:
            raise ValueError(
                "deviation_bits must be 2, 4 or 8 with exact=True, got 0: the remainder tells "
                "apart the weights of one deviation"
            )
        some_dtype = torch.bfloat16 if self.exact else None
        check_fit(self.fit, replace(layout, stored_dtype=some_dtype))

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
        """Bits a weight of the lossy planes, where the groups are full.

        With ``exact`` the remainder comes on top. Its size depends on the weights; usual bf16
        weights take about 11.3 bits together. :func:`phiquant.preview` estimates it, and the
        report of :func:`phiquant.quantize_` tells it.
        """
        return self.index_bits + self.deviation_bits + 16 / self.group_size

    def layout(
        self, columns: int, exponent: int, stored_dtype: torch.dtype | None = None
    ) -> Layout:
        """The layout of a weight with this many columns.

        Args:
            columns: length of the reduction dimension.
            exponent: the power of two that multiplies every scale word.
            stored_dtype: the dtype that is stored exactly, or None for the lossy planes alone.
        """
        return Layout(
            columns,
            self.index_bits,
            self.deviation_bits,
            self.group_size,
            self.grid,
            exponent,
            stored_dtype,
        )

    def for_embedding(self) -> PhiConfig:
        """This config for embeddings and output heads: with no less than 4 deviation bits."""
        return replace(self, deviation_bits=max(4, self.deviation_bits))
