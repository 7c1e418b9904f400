"""Million weights a second that are encoded and decoded: `python -m benchmarks.codec_rates`."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import encode, phi, settings
from benchmarks.reporting import Verdict, environment, save, table
from benchmarks.timing import take_turns
from phiquant import codec, ops
from phiquant.codec import Layout

SIZE = 4096
BARS = (  # bits, what, million weights a second on two cores
    ("4+0", "encode", 300.0),
    ("exact", "encode", 120.0),
    ("exact", "decode to bfloat16", 1500.0),
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


def measure(repeats: int, size: int = SIZE) -> list[dict[str, Any]]:
    """Encoding with all bends and signs, and decoding, of a normal matrix of size x size."""
    normal, rows = torch.randn(size, size) * 0.02, []
    layouts = {f"4+{bits}": Layout(size, 4, bits, exponent=-10) for bits in (0, 2, 4, 8)}
    layouts["exact"] = Layout(size, exponent=-10, stored_dtype=torch.bfloat16)
    for bits, layout in layouts.items():
        weight = normal if layout.stored_dtype is None else normal.to(layout.stored_dtype)
        planes = encode(weight, layout)
        runs = {"encode": partial(encode, weight, layout)}
        for dtype in (torch.bfloat16, torch.float32):
            name = str(dtype).removeprefix("torch.")
            described = (*planes, size, *settings(layout), dtype)
            runs[f"decode to {name}"] = partial(phi.decode, *described)
        rows += [
            {
                "bits": bits,
                "what": what,
                "million_per_s": weight.numel() / times.median / 1e6,
                "best_million_per_s": weight.numel() / times.best / 1e6,
            }
            for what, times in take_turns(runs, repeats).items()
        ]
    return rows


def verdicts(rows: list[dict[str, Any]]) -> list[Verdict]:
    speed = {(row["bits"], row["what"]): row["million_per_s"] for row in rows}
    return [
        Verdict(f"{what}, {bits}", bar, speed.get((bits, what)), "M weights/s")
        for bits, what, bar in BARS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if not ops.compiled:
        parser.error("the compiled kernels are not built")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        verify()
        rows = measure(options.repeats)
    about = environment("benchmarks.codec_rates")
    print(json.dumps(about, indent=1))
    cells = ([r["bits"], r["what"], r["million_per_s"], r["best_million_per_s"]] for r in rows)
    print(table(["bits", "what", "M weights/s", "best"], cells), *verdicts(rows), sep="\n")
    if options.json:
        save(options.json, {"environment": about, "codec": rows})


if __name__ == "__main__":
    main()
