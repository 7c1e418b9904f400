"""Speed of the CPU kernels, next to torch's own: `python -m benchmarks.kernels [--json PATH]`.

Results are checked against the readable reference first. All contenders of a shape take turns, each
with as many copies of its weights as exceed the last-level cache, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.reporting import Verdict, environment, save, table
from phiquant import codec, ops
from phiquant.codec import Layout, Planes

SIZE = 4096
ROTATED_BYTES = 210_000_000
LINEAR_ROWS = (1, 8, 256)
phi = torch.ops.phiquant
Contender = Callable[[Tensor], Tensor]


def settings(layout: Layout) -> tuple[Any, ...]:
    bits = (layout.index_bits, layout.deviation_bits, layout.group_size)
    return *bits, layout.grid, layout.exponent, layout.stored_dtype


def encode(weight: Tensor, layout: Layout, fit: str = "joint") -> Planes:
    planes = phi.encode(weight, None, *settings(layout), fit)
    lossy = [plane if plane.shape[-1] else None for plane in planes]
    if layout.stored_dtype is None:
        return Planes(*lossy)
    exact = phi.encode_remainder(weight, *lossy, *settings(layout))
    return Planes(*lossy, *exact[:3])  # no infinities here


def verify() -> None:
    """Raise unless the kernels agree with the reference on a small matrix."""
    weight, x = torch.randn(48, 256) * 0.02, torch.randn(3, 256)
    for deviation_bits in (0, 2, 4, 8):
        layout = Layout(256, 4, deviation_bits, exponent=-10)
        planes = encode(weight, layout)
        assert all(
            a is None or torch.equal(a, b)
            for a, b in zip(planes, codec.encode(weight, layout), strict=True)
        )
        decoded = codec.decode(planes, layout)
        assert torch.equal(phi.decode(*planes, 256, *settings(layout), torch.float32), decoded)
        product = phi.linear(x, *planes, None, 256, *settings(layout))
        torch.testing.assert_close(product, functional.linear(x, decoded))
    original = weight.bfloat16()
    layout = Layout(256, exponent=-10, stored_dtype=torch.bfloat16)
    again = phi.decode(*encode(original, layout), 256, *settings(layout), torch.bfloat16)
    assert torch.equal(again, original)


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def codec_rates(repeats: int) -> list[dict[str, Any]]:
    """Encoding and decoding of SIZE x SIZE, in million weights a second."""
    normal, rows = torch.randn(SIZE, SIZE) * 0.02, []
    layouts = {f"4+{bits}": Layout(SIZE, 4, bits, exponent=-10) for bits in (4, 0, 2, 8)}
    layouts["exact"] = Layout(SIZE, exponent=-10, stored_dtype=torch.bfloat16)
    for bits, layout in layouts.items():
        weight = normal if layout.stored_dtype is None else normal.to(layout.stored_dtype)
        seconds = {
            "encode, all bends and signs": median_seconds(partial(encode, weight, layout), repeats)
        }
        planes = encode(weight, layout)
        for dtype in (torch.bfloat16, torch.float32):
            run = partial(phi.decode, *planes, SIZE, *settings(layout), dtype)
            name = str(dtype).removeprefix("torch.")
            seconds[f"decode to {name}"] = median_seconds(run, repeats)
        rows += [
            {"what": what, "bits": bits, "million_per_s": weight.numel() / s / 1e6}
            for what, s in seconds.items()
        ]
    return rows


def copies(tensors: tuple[Tensor | None, ...]) -> list[tuple[Tensor | None, ...]]:
    """So many copies that together they exceed the cache."""
    size = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    many = -(-ROTATED_BYTES // size)
    return [tuple(None if t is None else t.clone() for t in tensors) for _ in range(many)]


def rotating(tensors: tuple[Tensor | None, ...], product: Callable[..., Tensor]) -> Contender:
    turn = cycle(copies(tensors))
    return lambda x: product(x, *next(turn))


def contenders(weight: Tensor) -> dict[str, Contender]:
    """What multiplies bf16 rows with the matrix: torch's kernels and phiquant's."""
    half = weight.bfloat16()
    scale = weight.abs().amax(1) / 127
    eight = (weight / scale[:, None]).round().to(torch.int8)
    nibbles = torch.randint(16, (SIZE, SIZE), dtype=torch.int32)
    four = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
    zeros = torch.ones(SIZE // 64, SIZE, 2, dtype=torch.bfloat16)
    found = {
        "torch bf16": rotating((half,), functional.linear),
        "torch int8 per channel": rotating(
            (eight, scale.bfloat16()), torch.ops.aten._weight_int8pack_mm
        ),
        "torch int4 g64": rotating(
            (four, zeros),
            lambda x, w, z: torch.ops.aten._weight_int4pack_mm_for_cpu(x, w, 64, z),
        ),
    }
    for deviation_bits in (0, 4):
        layout = Layout(SIZE, 4, deviation_bits, exponent=-10)
        arguments = settings(layout)
        found[f"phiquant 4+{deviation_bits}"] = rotating(
            encode(weight, layout, "index"),
            lambda x, *planes, arguments=arguments: phi.linear(x, *planes, None, SIZE, *arguments),
        )
    layout = Layout(SIZE, exponent=-10, stored_dtype=torch.bfloat16)
    exact = settings(layout)
    found["phiquant exact"] = rotating(
        encode(half, layout), lambda x, *planes: phi.linear(x, *planes, None, SIZE, *exact)
    )
    return found


def linear_times(repeats: int) -> list[dict[str, Any]]:
    """Milliseconds a product of `rows` bf16 rows with SIZE x SIZE, everyone taking turns."""
    rows = []
    for many in LINEAR_ROWS:
        x = torch.randn(many, SIZE, dtype=torch.bfloat16)
        runs = contenders(torch.randn(SIZE, SIZE) * 0.02)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats if many < 64 else max(repeats // 5, 5)):
            for name, run in runs.items():
                start = time.perf_counter()
                run(x)
                times[name].append(time.perf_counter() - start)
        rows += [
            {"rows": many, "what": name, "ms": statistics.median(t) * 1e3, "best_ms": min(t) * 1e3}
            for name, t in times.items()
        ]
    return rows


def verdicts(rates: list[dict[str, Any]], times: list[dict[str, Any]]) -> list[Verdict]:
    speed = {(r["bits"], r["what"].partition(",")[0]): r["million_per_s"] for r in rates}
    single = {row["what"]: row["ms"] for row in times if row["rows"] == 1}
    return [
        Verdict("encode with the full search", 50.0, speed["4+4", "encode"], "M weights/s"),
        Verdict("encode exactly", 40.0, speed["exact", "encode"], "M weights/s"),
        Verdict("decode exactly", 250.0, speed["exact", "decode to bfloat16"], "M weights/s"),
        *(
            Verdict(f"one row, 4+{bits}, against bf16", 1.0, single["torch bf16"] / ms, "x")
            for bits, ms in ((4, single["phiquant 4+4"]), (0, single["phiquant 4+0"]))
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    if not ops.compiled:
        parser.error("the compiled kernels are not built")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        verify()
        rates = codec_rates(max(options.repeats // 10, 3))
        times = linear_times(options.repeats)
    about = environment("benchmarks.kernels")
    print(json.dumps(about, indent=1))
    header = ["bits", "what", "M weights/s"]
    print(table(header, ([r["bits"], r["what"], r["million_per_s"]] for r in rates)), end="\n\n")
    header = ["rows", "what", "median ms", "best ms"]
    print(table(header, ([r["rows"], r["what"], r["ms"], r["best_ms"]] for r in times)))
    print(*verdicts(rates, times), sep="\n")
    if options.json:
        save(options.json, {"environment": about, "codec": rates, "linear": times})


if __name__ == "__main__":
    main()
