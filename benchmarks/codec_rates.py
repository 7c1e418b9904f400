"""Million weights a second that are encoded and decoded: `python -m benchmarks.codec_rates`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import encode, phi, settings
from benchmarks.reporting import Verdict, environment, save, table
from benchmarks.timing import take_turns
from phiquant import codec, ops
from phiquant.codec import Layout, Planes

SIZE = 4096
WARM_ROWS = 256  # 2 MB of bf16 at 4096 columns: the allocator hands the same pages out again
LOSSY, EXACT, ENCODE = "lossy, 4+{}", "exact", "encode"
FRESH, REUSED = "decode to {}, fresh memory", "decode to {}, reused memory"
BARS = (  # planes, what, million weights a second on two cores
    (LOSSY.format(0), ENCODE, 300.0),
    (LOSSY.format(4), ENCODE, 300.0),
    (EXACT, ENCODE, 120.0),
    (EXACT, REUSED.format("bfloat16"), 1500.0),
)


def verify() -> None:
    """Raise unless the kernels agree with the reference on a small matrix."""
    weight = torch.randn(48, 256) * 0.02
    for deviation_bits in (0, 2, 4, 8):
        layout = Layout(256, 4, deviation_bits, exponent=-10)
        planes = encode(weight, layout)
        assert all(
            a is None or torch.equal(a, b)
            for a, b in zip(planes, codec.encode(weight, layout), strict=True)
        )
        decoded = phi.decode(*planes, 256, *settings(layout), torch.float32)
        assert torch.equal(decoded, codec.decode(planes, layout))
    original = weight.bfloat16()
    layout = Layout(256, exponent=-10, stored_dtype=torch.bfloat16)
    again = phi.decode(*encode(original, layout), 256, *settings(layout), torch.bfloat16)
    assert torch.equal(again, original)


def decoders(weight: Tensor, planes: Planes, layout: Layout) -> dict[str, Callable[[], object]]:
    """Decoding all rows at once, into pages that the system has to clear first; and few rows as
    often as makes as many, into pages that the allocator hands out again: as a product's chunks."""
    runs: dict[str, Callable[[], object]] = {}
    few = min(WARM_ROWS, weight.shape[0])
    block = encode(weight[:few], layout)
    for dtype in (torch.bfloat16, torch.float32):
        name, rest = str(dtype).removeprefix("torch."), (layout.columns, *settings(layout), dtype)

        def again(rest: tuple[Any, ...] = rest) -> None:
            for _ in range(weight.shape[0] // few):
                phi.decode(*block, *rest)

        runs[FRESH.format(name)] = partial(phi.decode, *planes, *rest)
        runs[REUSED.format(name)] = again
    return runs


def measure(repeats: int, threads: int, size: int = SIZE) -> list[dict[str, Any]]:
    """Encoding with all bends and signs, and decoding, of a normal matrix of size x size."""
    torch.set_num_threads(threads)
    normal, rows = torch.randn(size, size) * 0.02, []
    layouts = {LOSSY.format(bits): Layout(size, 4, bits, exponent=-10) for bits in (0, 2, 4, 8)}
    layouts[EXACT] = Layout(size, exponent=-10, stored_dtype=torch.bfloat16)
    for name, layout in layouts.items():
        weight = normal if layout.stored_dtype is None else normal.to(layout.stored_dtype)
        planes = encode(weight, layout)
        runs = decoders(weight, planes, layout)
        runs[ENCODE] = partial(encode, weight, layout)
        rows += [
            {
                "planes": name,
                "what": what,
                "threads": threads,
                "million_per_s": weight.numel() / times.median / 1e6,
                "best_million_per_s": weight.numel() / times.best / 1e6,
            }
            for what, times in take_turns(runs, repeats).items()
        ]
    return rows


def verdicts(rows: list[dict[str, Any]]) -> list[Verdict]:
    """For the largest number of threads that was timed."""
    most = max(row["threads"] for row in rows)
    speed = {(r["planes"], r["what"]): r["million_per_s"] for r in rows if r["threads"] == most}
    return [
        Verdict(f"{planes}: {what}, {most} threads", bar, speed.get((planes, what)), "M weights/s")
        for planes, what, bar in BARS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if not ops.compiled:
        parser.error("the compiled kernels are not built")
    torch.manual_seed(0)
    with torch.inference_mode():
        verify()
        counts = sorted({1, options.threads})
        rows = [row for threads in counts for row in measure(options.repeats, threads)]
    about = environment("benchmarks.codec_rates")
    print(json.dumps(about, indent=1))
    header = ("planes", "what", "threads", "million_per_s", "best_million_per_s")
    cells = ([row[key] for key in header] for row in rows)
    titles = ["planes", "what", "threads", "M weights/s", "best"]
    print(table(titles, cells), *verdicts(rows), sep="\n")
    if options.json:
        save(options.json, {"environment": about, "codec": rows})


if __name__ == "__main__":
    main()
