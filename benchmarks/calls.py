"""What a call of nn.Linear costs: `python -m benchmarks.calls [--json PATH] [--no-compile]`.

A plain and a compressed layer take turns, with one row each, in every gradient mode and compiled.
The small matrix shows the way to the product, the larger one what is left of it beside a product.
Results are compared first. Each figure is a batch of calls; the minimum is the code's own time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import phiquant
from benchmarks.reporting import Verdict, environment, save, table
from phiquant import ops

SIZES = (64, 576)
DTYPES = (torch.float32, torch.bfloat16)
MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": nullcontext}
BATCH = 20
BAR = 1.5
Layer = Callable[[Tensor], Tensor]


def layers(size: int, dtype: torch.dtype) -> tuple[nn.Linear, nn.Linear]:
    """A plain layer on decoded weights and a compressed one, that give the same."""
    compressed = nn.Linear(size, size, dtype=dtype).requires_grad_(False)
    phiquant.quantize_(compressed, progress=False)
    plain = nn.Linear(size, size, dtype=dtype).requires_grad_(False)
    plain.weight.copy_(compressed.weight.dequantize())  # type: ignore[operator]
    plain.bias.copy_(compressed.bias)
    return plain, compressed


def verify(plain: Layer, compressed: Layer, x: Tensor) -> None:
    tolerance = 1e-4 if x.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(compressed(x), plain(x), rtol=tolerance, atol=tolerance)


def microseconds(runs: dict[str, Layer], x: Tensor, repeats: int) -> dict[str, list[float]]:
    """Of one call, a figure a batch, everyone taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(BATCH):
                run(x)
            times[name].append((time.perf_counter() - start) / BATCH * 1e6)
    return times


def cases(compiled: bool) -> Iterator[tuple[str, Any, Callable[[nn.Module], Layer], bool]]:
    """The name of a way to call, its context, what is called, and whether the input is trained."""
    for name, context in MODES.items():
        yield name, context, lambda layer: layer, False
    yield "grad of the input", nullcontext, lambda layer: layer, True
    if compiled:
        yield "compiled", torch.no_grad, torch.compile, False


def measure(repeats: int, compiled: bool) -> list[dict[str, Any]]:
    rows = []
    for size in SIZES:
        for dtype in DTYPES:
            pair = layers(size, dtype)
            for name, context, made, trained in cases(compiled):
                torch.compiler.reset()
                runs = dict(zip(("plain", "compressed"), map(made, pair), strict=True))
                x = torch.randn(1, size, dtype=dtype, requires_grad=trained)
                with context():
                    verify(runs["plain"], runs["compressed"], x)
                    times = microseconds(runs, x, repeats)
                best = {which: min(t) for which, t in times.items()}
                medians = {which: statistics.median(t) for which, t in times.items()}
                rows.append(
                    {
                        "call": name,
                        "size": size,
                        "dtype": str(dtype).removeprefix("torch."),
                        "best_us": best,
                        "median_us": medians,
                        "ratio": best["compressed"] / best["plain"],
                    }
                )
    return rows


def verdicts(rows: list[dict[str, Any]]) -> list[Verdict]:
    """The worst dtype of each way to call, on the matrix that is so small that the way is all."""
    names = dict.fromkeys(row["call"] for row in rows)
    worst = {
        name: max(r["ratio"] for r in rows if r["call"] == name and r["size"] == SIZES[0])
        for name in names
    }
    return [Verdict(f"a call, {name}", BAR, worst[name], "x", at_most=True) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    if not ops.compiled:
        parser.error("the compiled kernels are not built")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = measure(options.repeats, not options.no_compile)
    about = environment("benchmarks.calls")
    print(json.dumps(about, indent=1))
    header = ["call", "size", "dtype", "plain us", "compressed us", "medians", "", "ratio"]
    cells = (
        [r["call"], r["size"], r["dtype"], *r["best_us"].values(), *r["median_us"].values()]
        + [r["ratio"]]
        for r in rows
    )
    print(table(header, cells), end="\n\n")
    print(*verdicts(rows), sep="\n")
    if options.json:
        save(options.json, {"environment": about, "calls": rows})


if __name__ == "__main__":
    main()
