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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import settings
from benchmarks.reporting import environment, save, table
from phiquant import PhiConfig, ops, quantize_
from phiquant.codec import Layout

SHAPE = "14336x4096"  # outputs x inputs
_CHECKED = 256  # rows
_REPEATS = 7
_LAYERS = 4
phi = torch.ops.phiquant


def layouts(columns: int) -> dict[str, Layout]:
    lossy = {
        f"index+{bits}" if bits else "index": Layout(columns, 4, bits, exponent=-10)
        for bits in (0, 2, 4, 8)
    }
    exact = Layout(columns, exponent=-10, stored_dtype=torch.bfloat16)
    return lossy | {"exact, without the remainder": exact}


def check(name: str, weight: Tensor, layout: Layout) -> None:
    """Raises `AssertionError` if a plane differs from the CPU's."""
    part = weight[:_CHECKED]
    found = phi.encode(part, None, *settings(layout), "joint")
    wanted = phi.encode(part.cpu(), None, *settings(layout), "joint")
    for plane, other in zip(found, wanted, strict=True):
        assert torch.equal(plane.cpu(), other), name


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


def measure_op(shape: str) -> list[dict[str, Any]]:
    outputs, inputs = map(int, shape.split("x"))
    weight = (torch.randn(outputs, inputs, device="cuda") * 0.02).bfloat16()
    found = []
    for name, layout in layouts(inputs).items():
        check(name, weight, layout)
        given = (weight, None, *settings(layout), "joint")
        taken = seconds(lambda given=given: phi.encode(*given))
        found.append({"what": name, "ms": taken * 1e3, "g_per_s": weight.numel() / taken / 1e9})
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
        weights = _LAYERS * outputs * inputs
        found.append(
            {"what": f"quantize_, {name}", "ms": taken * 1e3, "g_per_s": weights / taken / 1e9}
        )
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--shape", default=SHAPE, help="outputs x inputs")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not ops.compiled_cuda:
        parser.error(f"needs a GPU and phiquant's kernels for it: {ops.why_not_compiled_cuda}")
    return options


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    about = environment("benchmarks.cuda_encode")
    about["gpu"], about["cuda"] = torch.cuda.get_device_name(), torch.version.cuda
    found = measure_op(options.shape) + measure_model(options.shape)
    print(json.dumps(about, indent=1))
    print(table(["what", "ms", "G weights/s"], (list(row.values()) for row in found)))
    if options.json:
        save(options.json, {"environment": about, "encode": found})


if __name__ == "__main__":
    main()
