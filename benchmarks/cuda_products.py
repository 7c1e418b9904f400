"""Products with the weights of one shape on a GPU: all contenders are kept, and timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import Contender, Operands, build, error
from benchmarks.cuda_contenders import BUILDERS, CUBLAS
from benchmarks.cuda_timing import Timing, in_turn
from benchmarks.reporting import table

_ROTATION = 256_000_000  # bytes: five times an H100's L2


def copies(operands: Operands) -> list[Operands]:
    """As many as exceed the cache, the given ones first."""
    size = sum(t.nbytes for t in operands if t is not None)
    more = max(2, -(-_ROTATION // size)) - 1
    return [operands] + [
        tuple(None if t is None else t.clone() for t in operands) for _ in range(more)
    ]


class Products:
    """Everybody who multiplies by a weight of one shape. missing: who does not, and why."""

    def __init__(self, shape: str, only: list[str], bandwidth: float) -> None:
        self.shape, self.bandwidth = shape, bandwidth
        self.outputs, self.inputs = map(int, shape.split("x"))
        chosen = [builder for name, builder in BUILDERS.items() if name in ("cublas", *only)]
        weight = torch.randn(self.outputs, self.inputs) * 0.02
        self.contenders, self.missing = build(weight, chosen)
        self._copies = [copies(contender.operands) for contender in self.contenders]

    def measure(self, rows: int) -> list[dict[str, Any]]:
        """A row of results for each contender.

        Raises:
            AssertionError: a contender's product is not that of its weights.
        """
        x = torch.randn(rows, self.inputs, device="cuda")
        xs = [x.to(contender.dtype) for contender in self.contenders]
        errors = [error(of, mine) for of, mine in zip(self.contenders, xs, strict=True)]
        timings = in_turn([list(self._calls(at, mine)) for at, mine in enumerate(xs)])
        cublas = next(
            timing.us
            for contender, timing in zip(self.contenders, timings, strict=True)
            if contender.name == CUBLAS
        )
        return [
            {"rows": rows, "error": off, **self._row(contender, timing, cublas)}
            for contender, off, timing in zip(self.contenders, errors, timings, strict=True)
        ]

    def _calls(self, at: int, x: Tensor) -> Iterator[Any]:
        for operands in self._copies[at]:
            yield partial(self.contenders[at].product, x, *operands)

    def _row(self, contender: Contender, timing: Timing, cublas: float) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "what": contender.name,
            "bits": contender.read_bytes * 8 / (self.outputs * self.inputs),
            "us": timing.us,
            "sm_mhz": timing.mhz,
            "lowest_sm_mhz": timing.lowest_mhz,
            "times_cublas": cublas / timing.us,
            "of_copy": contender.read_bytes / timing.us * 1e6 / self.bandwidth,
        }


def report(found: list[dict[str, Any]]) -> str:
    """A table a shape: times of cuBLAS's for each number of rows, and the clocks meanwhile."""
    parts = []
    for shape in dict.fromkeys(row["shape"] for row in found):
        chosen = [row for row in found if row["shape"] == shape]
        many = list(dict.fromkeys(row["rows"] for row in chosen))
        header = ["what", "bits", f"us, M = {many[0]}", "of copy", *(f"x, M = {m}" for m in many)]
        lines = []
        for name in dict.fromkeys(row["what"] for row in chosen):
            mine = {row["rows"]: row for row in chosen if row["what"] == name}
            first = mine[many[0]]
            lines.append(
                [name, first["bits"], first["us"], first["of_copy"]]
                + [mine[rows]["times_cublas"] for rows in many]
            )
        parts.append(f"\n{shape}\n{table(header, lines + clocks(chosen, many))}")
    return "\n".join(parts)


def clocks(found: list[dict[str, Any]], many: list[int]) -> list[list[Any]]:
    """The multiprocessors' clock with each number of rows: the contenders' median, the lowest."""
    lines = []
    for name, key, of in (
        ("SM clock, MHz, median", "sm_mhz", statistics.median),
        ("SM clock, MHz, lowest", "lowest_sm_mhz", min),
    ):
        each = [of([row[key] for row in found if row["rows"] == rows]) for rows in many]
        lines.append([name, None, None, None, *map(round, each)])
    return lines
