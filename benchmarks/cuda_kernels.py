"""Products and decoding on a GPU, peers side by side: `python -m benchmarks.cuda_kernels`.

bf16 rows. Each contender's product is checked against the fp32 product of the weights that it
stands for; then it is timed in a CUDA graph over copies of its weights that together exceed the L2
cache five times. A copy is timed in the same run: bytes are compared with what it moved. Peers that
are not installed are named, with what installs them.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import Contender, Operands, build, error, settings
from benchmarks.cuda_contenders import BUILDERS, CUBLAS, phiquant
from benchmarks.cuda_options import gpu_environment, gpu_parser, parsed
from benchmarks.cuda_timing import copy_bandwidth, microseconds
from benchmarks.reporting import save, table
from phiquant.codec import Layout

SHAPES = ("14336x4096", "8192x8192")  # outputs x inputs
ROWS = (1, 2, 4, 8, 16, 256, 2048)
_ROTATION = 256_000_000  # bytes: five times an H100's L2


def copies(operands: Operands) -> list[Operands]:
    """As many as exceed the cache, the given ones first."""
    size = sum(t.nbytes for t in operands if t is not None)
    more = max(2, -(-_ROTATION // size)) - 1
    return [operands] + [
        tuple(None if t is None else t.clone() for t in operands) for _ in range(more)
    ]


def time_product(contender: Contender, x: Tensor) -> float:
    return microseconds(
        [partial(contender.product, x, *operands) for operands in copies(contender.operands)]
    )


def measure(
    shape: str, many: list[int], bandwidth: float, only: list[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each contender and number of rows; and who is missing.

    Raises:
        AssertionError: a contender's product is not that of its weights.
    """
    outputs, inputs = map(int, shape.split("x"))
    chosen = [builder for name, builder in BUILDERS.items() if name in ("cublas", *only)]
    contenders, missing = build(torch.randn(outputs, inputs) * 0.02, chosen)
    found, cublas = [], {}
    for contender in contenders:
        for rows in many:
            x = torch.randn(rows, inputs, device="cuda", dtype=contender.dtype)
            off, time = error(contender, x), time_product(contender, x)
            if contender.name == CUBLAS:
                cublas[rows] = time
            found.append(
                {
                    "shape": shape,
                    "what": contender.name,
                    "bits": contender.read_bytes * 8 / (outputs * inputs),
                    "rows": rows,
                    "us": time,
                    "error": off,
                    "times_cublas": cublas[rows] / time,
                    "of_copy": contender.read_bytes / time * 1e6 / bandwidth,
                }
            )
        print(f"{shape}: {contender.name}", file=sys.stderr, flush=True)
    return found, missing


def measure_decoding(shape: str, bandwidth: float) -> list[dict[str, Any]]:
    """Decoding to bf16 of each tier, checked against the fp32 decode."""
    outputs, inputs = map(int, shape.split("x"))
    contenders, _ = build(torch.randn(outputs, inputs) * 0.02, [phiquant])
    found = []
    for contender in contenders:
        name = contender.name.removeprefix("phiquant ")
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
            {"shape": shape, "what": name, "us": time, "of_copy": moved / time * 1e6 / bandwidth}
        )
    return found


def report(found: list[dict[str, Any]], many: list[int]) -> str:
    """A table a shape: times of cuBLAS's for each number of rows."""
    parts = []
    for shape in dict.fromkeys(row["shape"] for row in found):
        lines = []
        chosen = [row for row in found if row["shape"] == shape]
        for name in dict.fromkeys(row["what"] for row in chosen):
            mine = {row["rows"]: row for row in chosen if row["what"] == name}
            first = mine[many[0]]
            lines.append(
                [name, first["bits"], first["us"], first["of_copy"]]
                + [mine[rows]["times_cublas"] for rows in many]
            )
        header = ["what", "bits", f"us, M = {many[0]}", "of copy", *(f"x, M = {m}" for m in many)]
        parts.append(f"\n{shape}\n{table(header, lines)}")
    return "\n".join(parts)


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


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    found, decoding, missing = [], [], []
    with torch.inference_mode():
        bandwidth = copy_bandwidth()
        for shape in options.shapes:
            mine, missing = measure(shape, options.rows, bandwidth, options.only)
            found += mine
            print(report(mine, options.rows), flush=True)
            if "phiquant" in options.only:
                decoding += measure_decoding(shape, bandwidth)
    about = gpu_environment("benchmarks.cuda_kernels")
    about["copy_tb_per_s"] = bandwidth / 1e12
    print(json.dumps(about, indent=1))
    print("\ndecoding to bf16")
    print(table(["shape", "tier", "us", "of copy"], (list(row.values()) for row in decoding)))
    print(*(f"not measured: {reason}" for reason in missing), sep="\n")
    if options.json:
        save(
            options.json,
            {"environment": about, "linear": found, "decode": decoding, "missing": missing},
        )


if __name__ == "__main__":
    main()
