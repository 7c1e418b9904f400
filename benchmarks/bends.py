"""Which eight bends: the error of many bends on groups of real weights, and of sets of eight.

    python -m benchmarks.bends --groups 128

Errors are those of fp64 arithmetic with the format's scales (4 index and 4 deviation bits), which
differ from the codec's by less than 0.01 dB. SQNR is in dB, a mean over layers, then over models.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.matrices import matrices
from benchmarks.zoo import antiberty, crepe, efficientnet, minilm, whisper

HALF, DEVIATIONS, GROUP = 8, 16, 64
PHI = (1 + 5**0.5) / 2
CANDIDATES = sorted(
    {round(i / 40, 4) for i in range(-8, 41)}
    | {PHI**-2, PHI**-3, PHI**-4, 1 - PHI**-3, 1 - PHI**-4, 1 - PHI**-5, 1 - PHI**-6, 1 / PHI}
)
FITS = ("joint", "index", "deviation")
MODELS = {
    "MiniLM": (minilm, False),
    "AntiBERTy": (antiberty, False),
    "Whisper": (whisper, False),
    "EfficientNet": (efficientnet, False),
    "CREPE": (crepe, True),
}


def sampled_layers(name: str, groups: int) -> Iterator[Tensor]:
    """``[groups, 64]`` of every layer, fp64, drawn with a fixed seed."""
    module, convolutions = MODELS[name]
    for matrix in matrices(module.load(), convolutions=convolutions):
        whole = matrix.weight[:, : matrix.weight.shape[1] // GROUP * GROUP].reshape(-1, GROUP)
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
        yield whole[order[:groups]].double()


def errors(groups: Tensor, bend: float) -> Tensor:
    """Squared errors of both tiers with both signs, ``[2 tiers, 2 signs, n]``."""

    def level(position: Tensor) -> Tensor:
        return position * ((1 - bend) / HALF + bend / HALF**3 * position * position)

    codes = torch.arange(2 * HALF * DEVIATIONS, dtype=torch.float64)
    start = HALF - 0.5
    edges = level(codes[1:] / DEVIATIONS - start)
    middles, centres = (
        level((codes + 0.5) / DEVIATIONS - start),
        level(codes // DEVIATIONS - start + 0.5),
    )
    top, bottom = level(torch.tensor([HALF + 0.125, start], dtype=torch.float64))
    found = []
    for signed in (groups, -groups):
        needed = torch.maximum(signed.amax(-1) / top, -signed.amin(-1) / bottom).clamp(min=1e-30)
        fraction, exponent = torch.frexp(needed)
        scale = torch.ldexp((fraction * 256).ceil(), exponent - 8).unsqueeze(-1)
        code = torch.bucketize(signed / scale, edges, right=True)
        tiers = (centres[code] * scale, middles[code] * scale)
        found.append(torch.stack([(tier - signed).square().sum(-1) for tier in tiers]))
    return torch.stack(found, dim=1)


def sqnr(
    table: list[tuple[Tensor, Tensor]], chosen: Sequence[int], fit: str
) -> tuple[float, float]:
    """Mean dB over the layers of (index tier, 8.25 bits), with the best of the chosen bends."""
    total = torch.zeros(2, dtype=torch.float64)
    for energy, every in table:
        index, deviation = every[list(chosen)].transpose(0, 1).flatten(1, 2)
        score = {"index": index, "deviation": deviation, "joint": index.square() * deviation}[fit]
        best = score.argmin(0, keepdim=True)
        noise = torch.stack([tier.gather(0, best).sum() for tier in (index, deviation)])
        total += 10 * (energy / noise).log10()
    return tuple((total / len(table)).tolist())


def goodness(tables: dict[str, list], chosen: Sequence[int]) -> float:
    """What a set is chosen for: dB of both tiers with the joint fit, mean over the models."""
    return sum(sum(sqnr(table, chosen, "joint")) for table in tables.values()) / len(tables)


def exchanged(tables: dict[str, list], chosen: list[int]) -> list[int]:
    """Exchange one bend for another while that helps."""
    best, improved = goodness(tables, chosen), True
    while improved:
        improved = False
        for place, other in itertools.product(range(len(chosen)), range(len(CANDIDATES))):
            trial = sorted({*chosen[:place], other, *chosen[place + 1 :]})
            if len(trial) == len(chosen) and (value := goodness(tables, trial)) > best + 1e-4:
                chosen, best, improved = trial, value, True
    return chosen


def nearest(bends: Sequence[float]) -> list[int]:
    return sorted(
        {min(range(len(CANDIDATES)), key=lambda i: abs(CANDIDATES[i] - b)) for b in bends}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--groups", type=int, default=128, help="groups sampled from each layer")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--exchange", action="store_true", help="search for a better set")
    arguments = parser.parse_args()
    tables = {
        name: [
            (layer.square().sum(), torch.stack([errors(layer, bend) for bend in CANDIDATES]))
            for layer in sampled_layers(name, arguments.groups)
        ]
        for name in arguments.models
    }
    first_eight = (0, PHI**-4, PHI**-3, PHI**-2, 0.5, 1 / PHI, 1 - PHI**-3, 1 - PHI**-5)
    sets = {
        "one: 1/2": nearest([0.5]),
        "four: 0, phi^-2, phi^-1, 1-phi^-4": nearest([0, PHI**-2, 1 / PHI, 1 - PHI**-4]),
        "the first eight": nearest(first_eight),
        "the first eight, uniform replaced by 1-phi^-6": nearest([*first_eight[1:], 1 - PHI**-6]),
        "even, 0 to 0.875": nearest([i / 8 for i in range(8)]),
        "even, 0.1 to 0.95": nearest([0.1 + 0.85 * i / 7 for i in range(8)]),
        "close": nearest([0.2, PHI**-3, 0.25, 0.3, 0.35, PHI**-2, 0.45, 0.5]),
        "close, and 0.618": nearest([0.2, PHI**-3, 0.3, 0.35, PHI**-2, 0.45, 0.5, 1 / PHI]),
        "close, and 0, 0.618, 0.764": nearest(
            [0, PHI**-3, 0.3, 0.35, PHI**-2, 0.5, 1 / PHI, 1 - PHI**-3]
        ),
        "close, and 0.764, 0.910": nearest(
            [0.2, PHI**-3, 0.3, 0.35, PHI**-2, 0.5, 1 - PHI**-3, 1 - PHI**-5]
        ),
        "all candidates": list(range(len(CANDIDATES))),
    }
    if arguments.exchange:
        sets["exchanged"] = exchanged(tables, nearest(first_eight))
    for name, chosen in sets.items():
        if len(chosen) <= 8:
            name += "  (" + ", ".join(f"{CANDIDATES[i]:.3f}" for i in chosen) + ")"
        print(name)
        for fit in FITS:
            rows = {model: sqnr(table, chosen, fit) for model, table in tables.items()}
            text = "  ".join(f"{model} {a:.2f} / {b:.2f}" for model, (a, b) in rows.items())
            mean = [sum(column) / len(rows) for column in zip(*rows.values(), strict=True)]
            print(f"  {fit:10} mean {mean[0]:.2f} / {mean[1]:.2f}   {text}")


if __name__ == "__main__":
    main()
