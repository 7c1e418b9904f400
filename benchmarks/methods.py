"""Everything that is compared: phiquant's tiers and the peers, behind one interface.

A method turns a matrix into one or more tiers: a nested format is encoded once and read at several
depths. A tier's label is the method's name and how deep it is read: "phi 4+4: index" is the index
plane of a tensor that stores 4 index and 4 deviation bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.matrices import Matrix
from benchmarks.peers import PEERS, Decoded


@dataclass(frozen=True)
class Method:
    """A named function from a matrix to its tiers, by label.

    headline: end metrics are measured by default, not errors alone.
    """

    name: str
    tiers: Callable[[Tensor], dict[str, Decoded]]
    headline: bool = True


def peer(name: str) -> Method:
    """One of `peers.PEERS`, as a method of a single tier."""
    headline = name not in ("int4 symmetric g64", "int8 signed g64")
    return Method(name, lambda weight: {name: PEERS[name](weight)}, headline)


def phi(name: str, depths: Iterable[int], headline: bool = True, **config: Any) -> Method:
    """phiquant with `PhiConfig(**config)`, read at the given numbers of deviation bits."""
    from phiquant.config import PhiConfig
    from phiquant.tensor import PhiTensor

    def tiers(weight: Tensor) -> dict[str, Decoded]:
        tensor = PhiTensor.from_hp(weight, PhiConfig(**config))
        views = {label(name, depth): tensor.at(depth) for depth in depths}
        return {
            key: Decoded(view.dequantize(torch.float32), view.bits_per_weight)
            for key, view in views.items()
        }

    return Method(name, tiers, headline)


def label(name: str, depth: int) -> str:
    """The label of a tier read at `depth` deviation bits."""
    return f"{name}: +{depth}" if depth else f"{name}: index"


def methods() -> list[Method]:
    """All of them, peers first. Deeper variants come after the default."""
    golden: dict[str, Any] = {"grid": "golden"}
    return [
        *(peer(name) for name in PEERS),
        phi("phi 4+4", (0, 4)),
        phi("phi 4+2", (2,), deviation_bits=2),
        phi("phi 4+8", (8,), deviation_bits=8),
        phi("phi 4+4 fit=index", (0, 4), fit="index"),
        phi("phi 4+4 fit=deviation", (0, 4), fit="deviation"),
        phi("phi 4+4 exact", (0, 4), headline=False, exact=True),
        *(phi(f"phi {bits}+4", (0, 4), headline=False, index_bits=bits) for bits in (2, 3, 5, 6)),
        phi("phi 4+4 g32", (0, 4), headline=False, group_size=32),
        phi("phi 4+4 g128", (0, 4), headline=False, group_size=128),
        phi("phi 5+8", (0, 4, 8), index_bits=5, deviation_bits=8),
        phi("golden 4+4", (0, 4), **golden),
        phi("golden 4+2", (2,), deviation_bits=2, headline=False, **golden),
        phi("golden 4+8", (8,), deviation_bits=8, headline=False, **golden),
        phi("golden 5+8", (0, 4, 8), index_bits=5, deviation_bits=8, **golden),
        phi("golden 6+8", (0, 4, 8), index_bits=6, deviation_bits=8, headline=False, **golden),
    ]


def decode_model(
    model_matrices: Iterable[Matrix], method: Method, wide: Method | None = None
) -> dict[str, dict[str, Decoded]]:
    """Every matrix through `method`: label -> matrix name -> what came back.

    wide: what embeddings and output heads go through instead; its deepest tier stands in for
    every tier of `method`, as a model is read.
    """
    decoded: dict[str, dict[str, Decoded]] = {}
    widened = {}
    for matrix in model_matrices:
        if matrix.wide and wide is not None:
            widened[matrix.name] = list(wide.tiers(matrix.weight).values())[-1]
            continue
        for key, tier in method.tiers(matrix.weight).items():
            decoded.setdefault(key, {})[matrix.name] = tier
    return {key: tiers | widened for key, tiers in decoded.items()}
