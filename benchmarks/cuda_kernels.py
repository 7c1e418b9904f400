"""Products and decoding on a GPU, peers side by side: `python -m benchmarks.cuda_kernels`.

bf16 rows. Each contender's product is checked against the fp32 product of the weights that it
stands for; then it is timed in a CUDA graph over copies of its weights that together exceed the L2
cache five times. All contenders are timed in turn, again and again, first with the first number of
rows: a long product lowers the clock for whoever comes next, and so everybody meets the same. The
clock is read after every graph. A copy is timed in the same run: bytes are compared with what it
moved. Peers that are not installed are named, with what installs them.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import Any

import torch

from benchmarks.contenders import settings
from benchmarks.cuda_contenders import BUILDERS
from benchmarks.cuda_options import gpu_environment, gpu_parser, parsed
from benchmarks.cuda_products import Products, copies, report
from benchmarks.cuda_timing import copy_bandwidth, microseconds
from benchmarks.reporting import save, table
from phiquant.codec import Layout

SHAPES = ("14336x4096", "8192x8192")  # outputs x inputs
ROWS = (1, 2, 4, 8, 16, 256, 2048)


def measure_decoding(of: Products) -> list[dict[str, Any]]:
    """Decoding to bf16 of each of phiquant's tiers, checked against the fp32 decode."""
    inputs, found = of.inputs, []
    for contender in of.contenders:
        name = contender.name.removeprefix("phiquant ")
        if name == contender.name:
            continue
        bits = int(name.partition("+")[2] or 0)
        layout = Layout(inputs, 4, bits, exponent=-10)
        if name == "exact":
            layout = Layout(inputs, exponent=-10, stored_dtype=torch.bfloat16)
        given = (inputs, *settings(layout), torch.bfloat16)
        weights = torch.ops.phiquant.decode(*contender.operands, *given)
        assert torch.equal(weights, contender.dequantize().bfloat16()), name
        calls = [
            partial(torch.ops.phiquant.decode, *planes, *given)
            for planes in copies(contender.operands)
        ]
        time = microseconds(calls)
        moved = contender.read_bytes + weights.nbytes
        found.append(
            {"shape": of.shape, "what": name, "us": time}
            | {"of_copy": moved / time * 1e6 / of.bandwidth}
        )
    return found


def arguments() -> argparse.Namespace:
    parser = gpu_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="outputs x inputs")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(BUILDERS),
        default=list(BUILDERS),
        help="these alone; cublas is always timed, since others are compared with it",
    )
    return parsed(parser)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What is saved: products by numbers of rows, of all shapes before the next number.

    It is saved after each, so that a run that is cut off leaves what it has.
    """
    about = gpu_environment("benchmarks.cuda_kernels")
    bandwidth = copy_bandwidth()
    about["copy_tb_per_s"] = bandwidth / 1e12
    shapes = [Products(shape, options.only, bandwidth) for shape in options.shapes]
    decoding = [row for shape in shapes for row in measure_decoding(shape)]
    found: list[dict[str, Any]] = []
    results = {"environment": about, "linear": found, "decode": decoding}
    results["missing"] = shapes[0].missing
    for rows in options.rows:
        for shape in shapes:
            found += shape.measure(rows)
            print(f"{rows} rows of {shape.shape}", file=sys.stderr, flush=True)
            if options.json:
                save(options.json, results)
    return results


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    with torch.inference_mode():
        results = measure(options)
    print(report(results["linear"]), flush=True)
    print(json.dumps(results["environment"], indent=1))
    print("\ndecoding to bf16")
    print(table(["shape", "tier", "us", "of copy"], (row.values() for row in results["decode"])))
    print(*(f"not measured: {reason}" for reason in results["missing"]), sep="\n")


if __name__ == "__main__":
    main()
