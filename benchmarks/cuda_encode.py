"""Weights a second that are encoded on a GPU: `python -m benchmarks.cuda_encode`.

bf16 weights of a large matrix; planes are compared with the CPU's, to the bit, before anything is
timed. The op waits for the device, so it is timed by the clock. Beside it `quantize_` of layers of
that shape, with all its checks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import settings
from benchmarks.cuda_options import gpu_environment, gpu_parser, parsed
from benchmarks.reporting import save, table
from phiquant import PhiConfig, quantize_
from phiquant.codec import Layout

SHAPE = "14336x4096"  # outputs x inputs
_CHECKED = 256  # rows
_REPEATS = 7
_LAYERS = 32
phi = torch.ops.phiquant


def layouts(columns: int) -> dict[str, Layout]:
    lossy = {
        f"index+{bits}" if bits else "index": Layout(columns, 4, bits, exponent=-10)
        for bits in (0, 2, 4, 8)
    }
    exact = Layout(columns, exponent=-10, stored_dtype=torch.bfloat16)
    golden = Layout(columns, grid="golden", exponent=-10)
    return lossy | {"golden, index+4": golden, "exact, all but the remainder": exact}


def remainder_layouts(columns: int) -> dict[str, Layout]:
    return {
        f"remainder, index+{bits}": Layout(
            columns, 4, bits, exponent=-10, stored_dtype=torch.bfloat16
        )
        for bits in (4, 8)
    }


def lossy_planes(weight: Tensor, layout: Layout) -> tuple[Tensor | None, ...]:
    planes = phi.encode(weight, None, *settings(layout), "joint")
    return tuple(plane if plane.shape[-1] else None for plane in planes)


def check(name: str, weight: Tensor, layout: Layout) -> None:
    """Raises `AssertionError` if a plane differs from the CPU's."""
    on_gpu, on_cpu = weight[:_CHECKED], weight[:_CHECKED].cpu()
    found, wanted = (lossy_planes(part, layout) for part in (on_gpu, on_cpu))
    if layout.stored_dtype is not None:
        found += phi.encode_remainder(on_gpu, *found, *settings(layout))
        wanted += phi.encode_remainder(on_cpu, *wanted, *settings(layout))
    for plane, other in zip(found, wanted, strict=True):
        assert plane is other or torch.equal(plane.cpu(), other), name


def seconds(run: Callable[[], object]) -> float:
    run()
    taken = []
    for _ in range(_REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def row(what: str, taken: float, weights: int) -> dict[str, Any]:
    return {"what": what, "ms": taken * 1e3, "g_per_s": weights / taken / 1e9}


def measure_op(shape: str) -> list[dict[str, Any]]:
    outputs, inputs = map(int, shape.split("x"))
    weight = (torch.randn(outputs, inputs, device="cuda") * 0.02).bfloat16()
    found = []
    for name, layout in layouts(inputs).items():
        check(name, weight, layout)
        given = (weight, None, *settings(layout), "joint")
        found.append(row(name, seconds(lambda given=given: phi.encode(*given)), weight.numel()))
    for name, layout in remainder_layouts(inputs).items():
        check(name, weight, layout)
        planes = (weight, *lossy_planes(weight, layout), *settings(layout))
        taken = seconds(lambda given=planes: phi.encode_remainder(*given))
        found.append(row(name, taken, weight.numel()))
    return found


def measure_model(shape: str) -> list[dict[str, Any]]:
    """`quantize_`, once for each config after a layer that warms up."""
    outputs, inputs = map(int, shape.split("x"))
    found = []
    for name, config in (("8.25 bits", PhiConfig()), ("exact", PhiConfig(exact=True))):
        taken = 0.0
        for layers in (1, _LAYERS):
            made = [nn.Linear(inputs, outputs, bias=False, device="cuda") for _ in range(layers)]
            model = nn.Sequential(*made).bfloat16()
            torch.cuda.synchronize()
            start = time.perf_counter()
            quantize_(model, config, progress=False)
            torch.cuda.synchronize()
            taken = time.perf_counter() - start
        found.append(row(f"quantize_, {name}", taken, _LAYERS * outputs * inputs))
    return found


def arguments() -> argparse.Namespace:
    parser = gpu_parser(__doc__)
    parser.add_argument("--shape", default=SHAPE, help="outputs x inputs")
    return parsed(parser)


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    about = gpu_environment("benchmarks.cuda_encode")
    found = measure_op(options.shape) + measure_model(options.shape)
    print(json.dumps(about, indent=1))
    print(table(["what", "ms", "G weights/s"], (list(row.values()) for row in found)))
    if options.json:
        save(options.json, {"environment": about, "encode": found})


if __name__ == "__main__":
    main()
