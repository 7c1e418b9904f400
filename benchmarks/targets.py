"""What the products of compressed weights are to reach, as ratios of speed within one run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.contenders import BF16, EXACT, INDEX, INT4, INT8, INT8_ACTIVATION
from benchmarks.reporting import Verdict


class Target(NamedTuple):
    """`what` is to be `bar` times as fast as `against` for so many rows."""

    what: str
    rows: int
    against: str
    bar: float


TARGETS = (
    Target(INDEX, 1, INT4, 1.2),
    Target(INDEX, 8, INT4, 1.1),
    Target(INDEX, 8, BF16, 2.0),
    Target(INDEX, 256, BF16, 0.9),
    Target(f"{INDEX}+4", 1, INT8, 1.0),
    Target(f"{INDEX}+4", 8, INT8, 1.0),
    Target(f"{INDEX}+4", 256, BF16, 0.9),
    Target(EXACT, 1, BF16, 0.35),
    Target(EXACT, 8, BF16, 0.35),
    Target(EXACT, 256, BF16, 0.8),
    Target(INT8_ACTIVATION, 1, INT4, 1.8),
    Target(INT8_ACTIVATION, 8, INT4, 2.0),
    Target(INT8_ACTIVATION, 256, BF16, 1.5),
)


def ratio(results: list[dict[str, Any]], target: Target, shape: str) -> float | None:
    """How many times as fast it is with this shape; None if one of the two was not measured."""
    ms = {r["what"]: r["ms"] for r in results if (r["shape"], r["rows"]) == (shape, target.rows)}
    if target.what not in ms or target.against not in ms:
        return None
    return ms[target.against] / ms[target.what]


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that were measured; None if none was."""
    known = [math.log(value) for value in values if value is not None]
    return math.exp(sum(known) / len(known)) if known else None


def verdicts(results: list[dict[str, Any]]) -> list[Verdict]:
    """For each target whose rows were timed: the geometric mean over shapes, then each shape."""
    shapes = list(dict.fromkeys(row["shape"] for row in results))
    timed, found = {row["rows"] for row in results}, []
    for target in TARGETS:
        if target.rows not in timed:
            continue
        claim = f"{target.what}, M = {target.rows}, against {target.against}"
        ratios = {shape: ratio(results, target, shape) for shape in shapes}
        mean = geometric_mean(ratios.values())
        found.append(Verdict(f"{claim}, all shapes", target.bar, mean, "x"))
        if mean is not None:
            found += [
                Verdict(f"    {shape}: {claim}", target.bar, measured, "x")
                for shape, measured in ratios.items()
            ]
    return found
