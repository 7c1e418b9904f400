"""Products of one x by one kernel on a GPU: `python -m benchmarks.cuda_joined`.

What a decoder's layer multiplies by the same rows of x, queries, keys and values, and gate and up,
by a kernel for each product and by one for all of them, as compiled graphs do. Every call of a CUDA
graph has weights of its own, so that what they read together exceeds the L2 cache; both ways are
timed in turn, and compared first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import encode, settings
from benchmarks.cuda_options import gpu_environment, gpu_parser, parsed
from benchmarks.cuda_timing import in_turn
from benchmarks.reporting import save, table
from phiquant import graph_ops
from phiquant.codec import Layout, Planes

ROWS = (1, 4, 8, 16)
TIERS = {"index": (0, None), "index + 4": (4, None), "exact": (4, torch.bfloat16)}
_ROTATED_BYTES = 200e6  # four times an H100's L2 cache
_TOLERANCE = 4e-3  # rms, in units of the product's: sums in another order, rounded to bf16
phi = torch.ops.phiquant
Products = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Joint:
    """Weights that have the same input."""

    name: str
    inputs: int
    outputs: tuple[int, ...]


JOINTS = (
    Joint("q, k, v", 4096, (4096, 1024, 1024)),
    Joint("gate, up", 4096, (14336, 14336)),
)


@dataclass(frozen=True)
class Ways:
    """The same products, a kernel each and together."""

    apart: Products
    together: Products


def weights(joint: Joint, layout: Layout) -> list[Planes]:
    method = "joint" if layout.deviation_bits else "index"
    return [
        encode((torch.randn(rows, joint.inputs, device="cuda") * 0.02).bfloat16(), layout, method)
        for rows in joint.outputs
    ]


def _copied(planes: Planes) -> Planes:
    copies: Any = (plane if plane is None else plane.clone() for plane in planes)
    return Planes(*copies)


def ways(planes: list[Planes], layout: Layout) -> Ways:
    given = (*settings(layout), False)
    code = graph_ops.pack(*given)
    lists = [[plane for plane in each if plane is not None] for each in zip(*planes, strict=True)]

    def apart(x: Tensor) -> list[Tensor]:
        return [phi._linear(x, *each, None, layout.columns, code) for each in planes]

    def together(x: Tensor) -> list[Tensor]:
        found: list[Tensor] = phi._linears(x, *lists[:-1], [], layout.columns, code)
        return found

    return Ways(apart, together)


def check(of: Ways, x: Tensor) -> None:
    """Raises `AssertionError` if the ways do not agree."""
    for one, other in zip(of.apart(x), of.together(x), strict=True):
        error = (one.float() - other.float()).square().mean() / one.float().square().mean()
        assert error.sqrt() <= _TOLERANCE, error.sqrt().item()


def measured(joint: Joint, tier: str) -> list[dict[str, Any]]:
    deviation_bits, stored = TIERS[tier]
    layout = Layout(joint.inputs, 4, deviation_bits, exponent=-10, stored_dtype=stored)
    first = weights(joint, layout)
    read = sum(plane.nbytes for planes in first for plane in planes if plane is not None)
    copies = max(2, -int(-_ROTATED_BYTES // read))
    many = [first] + [[_copied(planes) for planes in first] for _ in range(copies - 1)]
    made = [ways(planes, layout) for planes in many]
    found = []
    for m in ROWS:
        x = torch.randn(m, joint.inputs, device="cuda").bfloat16()
        check(made[0], x)
        apart, together = in_turn(
            [[partial(of.apart, x) for of in made], [partial(of.together, x) for of in made]]
        )
        row = {"weights": joint.name, "what": tier, "rows": m, "apart": apart.us}
        found.append(row | {"together": together.us, "times": apart.us / together.us})
    return found


def main() -> None:
    options: argparse.Namespace = parsed(gpu_parser(__doc__))
    torch.manual_seed(0)
    about = gpu_environment("benchmarks.cuda_joined")
    found = []
    with torch.inference_mode():
        for joint in JOINTS:
            for tier in TIERS:
                found += measured(joint, tier)
    print(json.dumps(about, indent=1))
    header = ["weights", "what", "rows", "us apart", "us together", "times as fast"]
    print(table(header, (list(row.values()) for row in found)))
    if options.json:
        save(options.json, {"environment": about, "products": found})


if __name__ == "__main__":
    main()
