"""Products with compressed weights, peers side by side: `python -m benchmarks.kernels`.

Layer shapes of Llama-3.1-8B and Llama-3.2-1B, bf16 rows (fp32 for torch's fp32). Each contender's
product is checked against the fp32 product of the weights that it stands for, then all take turns,
each with as many copies of its weights as exceed the last-level cache twice; medians are compared.
A reader of memory takes its turn, too: what it reads a second is what memory gave in that run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import bandwidth, targets
from benchmarks.contenders import BF16, INT4, INT8, Contender, build, error
from benchmarks.reporting import environment, save, table
from benchmarks.timing import Times, take_turns
from benchmarks.torch_path import linear_path
from phiquant import ops

SHAPES = {  # outputs x inputs
    "llama-3.1-8b": ("4096x4096", "14336x4096", "4096x14336", "1024x4096"),
    "llama-3.2-1b": ("2048x2048", "8192x2048", "2048x8192", "512x2048"),
    "default": ("4096x4096", "14336x4096", "8192x2048"),
}
ROWS = (1, 8, 256)
SECONDS = 14.0  # for each shape and number of rows
_READER_BYTES = 256_000_000
_READER = "read bandwidth"
_HEADER = (
    "what", "bits", "ms", "best ms", "x bf16", "x int8pack", "x int4pack", "GB/s", "of bandwidth",
)  # fmt: skip


def results(
    contenders: list[Contender], errors: dict[str, float], times: dict[str, Times], weights: int
) -> list[dict[str, Any]]:
    """What is stored of one shape and number of rows."""
    median = {name: t.median for name, t in times.items()}
    bandwidth_now = _READER_BYTES / median[_READER] / 1e9
    return [
        {
            "what": c.name,
            "bits": c.read_bytes * 8 / weights,
            "ms": median[c.name] * 1e3,
            "best_ms": times[c.name].best * 1e3,
            "error": errors[c.name],
            **{
                f"times_{key}": median[peer] / median[c.name] if peer in median else None
                for key, peer in (("bf16", BF16), ("int8pack", INT8), ("int4pack", INT4))
            },
            "gb_per_s": c.read_bytes / median[c.name] / 1e9,
            "of_bandwidth": c.read_bytes / median[c.name] / 1e9 / bandwidth_now,
            "bandwidth_gb_per_s": bandwidth_now,
        }
        for c in contenders
    ]


def time_rows(
    contenders: list[Contender],
    runs: dict[str, Callable[[Tensor], Tensor]],
    x: Tensor,
    seconds: float,
) -> tuple[dict[str, float], dict[str, Times]]:
    """Errors of all contenders, checked, and their times, the reader's among them."""
    inputs = {c.name: x.to(c.dtype) for c in contenders}
    errors = {c.name: error(c, x) for c in contenders}
    reader = bandwidth.product_reader(_READER_BYTES)
    turns: dict[str, Callable[[], object]] = {
        name: partial(run, inputs[name]) for name, run in runs.items()
    }
    return errors, take_turns({_READER: reader.run, **turns}, 5, seconds)


def measure(
    shapes: list[str],
    many: list[int],
    seconds: float,
    progress: Callable[[str], None] = print,
    cache: int | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row of results for each shape, number of rows and contender; and who is missing.

    Raises:
        AssertionError: a contender's product is not that of its weights.
    """
    found: list[dict[str, Any]] = []
    missing: list[str] = []
    for shape in shapes:
        outputs, inputs = map(int, shape.split("x"))
        weight = torch.randn(outputs, inputs) * 0.02
        contenders, missing = build(weight)
        runs = {c.name: c.rotating(cache) for c in contenders}
        for rows in many:
            progress(f"{shape}, {rows} rows")
            x = torch.randn(rows, inputs).bfloat16()
            measured = results(
                contenders, *time_rows(contenders, runs, x, seconds), outputs * inputs
            )
            found += [{"shape": shape, "rows": rows, **row} for row in measured]
    return found, missing


def report(found: list[dict[str, Any]]) -> str:
    """A table for each shape and number of rows."""
    keys = (
        "what", "bits", "ms", "best_ms", "times_bf16", "times_int8pack", "times_int4pack",
        "gb_per_s", "of_bandwidth",
    )  # fmt: skip
    parts = []
    for shape, rows in dict.fromkeys((r["shape"], r["rows"]) for r in found):
        chosen = [r for r in found if (r["shape"], r["rows"]) == (shape, rows)]
        read = chosen[0]["bandwidth_gb_per_s"]
        parts.append(f"\n{shape}, M = {rows}; memory gave {read:.1f} GB/s")
        parts.append(table(_HEADER, ([r[key] for key in keys] for r in chosen)))
    return "\n".join(parts)


def summary(found: list[dict[str, Any]]) -> str:
    """Speed in units of torch's bf16, geometric means over the shapes, a column for each M."""
    many = list(dict.fromkeys(r["rows"] for r in found))
    names = list(dict.fromkeys(r["what"] for r in found))

    def mean(name: str, rows: int) -> float | None:
        chosen = (r for r in found if (r["what"], r["rows"]) == (name, rows))
        return targets.geometric_mean(r["times_bf16"] for r in chosen)

    cells = ([name, *(mean(name, rows) for rows in many)] for name in names)
    return table(["times bf16, all shapes", *(f"M = {rows}" for rows in many)], cells)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    shapes = f"outputs x inputs, as 4096x14336, or one of {', '.join(SHAPES)}"
    parser.add_argument("--shapes", nargs="+", default=["default"], help=shapes)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    seconds = f"for each shape and number of rows; default: {SECONDS:g}"
    parser.add_argument("--seconds", type=float, default=SECONDS, help=seconds)
    options = parser.parse_args()
    if not ops.compiled:
        parser.error("the compiled kernels are not built")
    options.shapes = [each for name in options.shapes for each in SHAPES.get(name, (name,))]
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        found, missing = measure(options.shapes, options.rows, options.seconds)
    about = environment("benchmarks.kernels")
    about["last_level_cache"] = bandwidth.last_level_cache()
    about["torch bf16 path"] = {rows: linear_path(rows, options.threads) for rows in options.rows}
    print(json.dumps(about, indent=1), report(found), "", summary(found), "", sep="\n")
    print(*targets.verdicts(found), *(f"not measured: {reason}" for reason in missing), sep="\n")
    if options.json:
        save(options.json, {"environment": about, "linear": found, "missing": missing})


if __name__ == "__main__":
    main()
