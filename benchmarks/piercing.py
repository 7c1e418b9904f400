"""Piercing: the time to decode a slice against its size, at every tier.

    python -m benchmarks.piercing [--size 4096] [--json results.json]

Every slice is first compared, bit for bit, with the same part of the whole decode. Then all slices
of all tiers take turns, each time at another place, and medians are compared. A slice that costs
what it holds is as many times faster than the whole as it is smaller; calls alone take some
microseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.reporting import Verdict, environment, save, table
from phiquant import PhiConfig, PhiTensor, ops

TIERS = ("index", "deviation", "exact")
ROWS = (1, 16, 256)
TILE = 64  # a group
LOOKUP = 32
PLACES = 16
# Times faster than the whole at the exact tier, which is read in blocks of 512 columns. Small
# slices take as long as their calls.
BARS = {"1 row": 25.0, "256 rows": 8.0, "64 x 64": 25.0, "64 columns": 4.0}


class NotTheSame(RuntimeError):
    """A slice decoded to other bits than the whole has there."""


@dataclass(frozen=True)
class Slice:
    """A part of a weight ``[size, size]``.

    count: how many weights it holds.
    pick: takes it at a place from 0 to 1, from a compressed or a plain weight.
    """

    name: str
    count: int
    pick: Callable[[Tensor, float], Tensor]


def slices(size: int) -> list[Slice]:
    """What is read of a weight ``[size, size]``, the whole of it last."""

    def start(place: float, extent: int, step: int = 1) -> int:
        return int(place * (size - extent)) // step * step

    def rows(count: int) -> Callable[[Tensor, float], Tensor]:
        return lambda w, place: w[start(place, count) : start(place, count) + count]

    def tile(weight: Tensor, place: float) -> Tensor:
        at = start(place, TILE, TILE)
        return weight[at : at + TILE, at : at + TILE]

    def columns(weight: Tensor, place: float) -> Tensor:
        at = start(place, TILE, TILE)
        return weight[:, at : at + TILE]

    return [
        *(Slice(f"{n} row{'s' * (n > 1)}", n * size, rows(n)) for n in ROWS),
        Slice(f"{TILE} x {TILE}", TILE * TILE, tile),
        Slice(f"{TILE} columns", TILE * size, columns),
        Slice(f"embedding of {LOOKUP}", LOOKUP * size, lookup),
        Slice("the whole", size * size, lambda weight, place: weight),
    ]


def lookup(weight: Tensor, place: float) -> Tensor:
    """Rows of an embedding, apart from each other."""
    step = weight.shape[0] // LOOKUP
    return functional.embedding(torch.arange(LOOKUP) * step + int(place * (step - 1)), weight)


def decoded(part: Tensor) -> Tensor:
    """A plain tensor; what cuts through a group is one already."""
    return part.dequantize() if isinstance(part, PhiTensor) else part


def tiers_of(weight: Tensor) -> dict[str, PhiTensor]:
    """One exact weight at its tiers."""
    exact = PhiTensor.from_hp(weight, PhiConfig(exact=True))
    return {"index": exact.at(0), "deviation": exact.at(exact.deviation_bits), "exact": exact}


def verify(tiers: dict[str, PhiTensor], weight: Tensor, parts: list[Slice]) -> None:
    """Raise `NotTheSame` unless every slice at every place is that part of the whole decode."""
    for tier, tensor in tiers.items():
        whole = tensor.dequantize()
        if tier == "exact" and not same(whole, weight):
            raise NotTheSame("the whole at the exact tier is not the original")
        for part in parts:
            for place in places():
                if not same(decoded(part.pick(tensor, place)), part.pick(whole, place)):
                    raise NotTheSame(f"{part.name} at {place:.2f} of the {tier} tier")


def same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(torch.int16), other.contiguous().view(torch.int16))


def places() -> list[float]:
    """Apart from each other, the first and the last included, in an order that jumps."""
    return [(number * 7 % PLACES) / (PLACES - 1) for number in range(PLACES)]


def measure(tiers: dict[str, PhiTensor], parts: list[Slice], repeats: int) -> list[dict[str, Any]]:
    """Median seconds of every slice at every tier, all taking turns."""
    times: dict[tuple[str, str], list[float]] = {(p.name, t): [] for p in parts for t in tiers}
    for turn in range(repeats):
        place = places()[turn % PLACES]
        for part in parts:
            for tier, tensor in tiers.items():
                begin = time.perf_counter()
                decoded(part.pick(tensor, place))
                times[part.name, tier].append(time.perf_counter() - begin)
    return [
        {"slice": p.name, "weights": p.count, "tier": t, "us": median_us(times[p.name, t])}
        for p in parts
        for t in tiers
    ]


def median_us(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e6


def report(results: list[dict[str, Any]]) -> str:
    """Microseconds, and how many times faster than the whole at the same tier."""
    us = {(row["slice"], row["tier"]): row["us"] for row in results}
    whole, rows = max(row["weights"] for row in results), []
    for name, count in dict.fromkeys((row["slice"], row["weights"]) for row in results):
        faster = [f"{us['the whole', tier] / us[name, tier]:.1f}x" for tier in TIERS]
        cells = [
            cell for tier, x in zip(TIERS, faster, strict=True) for cell in (us[name, tier], x)
        ]
        rows.append([name, f"{whole / count:.0f}x", *cells])
    header = [cell for tier in TIERS for cell in (f"{tier}, us", "faster")]
    return table(["slice", "smaller", *header], rows)


def verdicts(results: list[dict[str, Any]]) -> list[Verdict]:
    """Speed over decoding the whole at the exact tier."""
    us = {row["slice"]: row["us"] for row in results if row["tier"] == "exact"}
    return [
        Verdict(f"{name}, exact, over the whole", bar, us["the whole"] / us[name], "x")
        for name, bar in BARS.items()
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.piercing", description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--repeats", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    if not ops.compiled:
        print("without the compiled kernels times say little")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    weight = (torch.randn(options.size, options.size) * 0.02).bfloat16()
    parts, tiers = slices(options.size), tiers_of(weight)
    with torch.inference_mode():
        verify(tiers, weight, parts)
        measure(tiers, parts, 2)
        results = measure(tiers, parts, options.repeats)
    output = environment("benchmarks.piercing")
    print(f"{options.size} x {options.size} bf16, {options.threads} threads, verified", end="\n\n")
    checks = verdicts(results)
    print(report(results), "", *checks, sep="\n")
    if options.json:
        size = {"size": options.size, "repeats": options.repeats}
        save(options.json, output | size | {"slices": results, "verdicts": [*map(asdict, checks)]})


if __name__ == "__main__":
    main()
