"""Experts of a mixture on a GPU: `python -m benchmarks.cuda_experts`.

One layer's product with the experts that few tokens chose, each token as many different ones,
beside torch's grouped product of the bf16 weights. Every call of a CUDA graph has other experts, so
that what they read together exceeds the L2 cache. Each product is checked against the fp32 product
of the experts' decoded weights first. `--rows 16 32 64`: so many rows for each expert on average
instead, by both ways that there are: from codes, and decoding all experts for torch's product.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import encode, settings
from benchmarks.cuda_options import gpu_environment, gpu_parser, parsed
from benchmarks.cuda_timing import copy_bandwidth, microseconds
from benchmarks.reporting import save, table
from phiquant.codec import Layout, Planes

TOKENS = (1, 4, 8)
_CALLS = 24  # of a graph
_TOLERANCE = 8e-3  # rms, in units of the product's
phi = torch.ops.phiquant


@dataclass(frozen=True)
class Mixture:
    """One weight of each expert, and how many of them a token takes."""

    name: str
    experts: int
    outputs: int
    inputs: int
    taken: int


MIXTURES = (
    Mixture("Mixtral 8x7B, down", 8, 4096, 14336, 2),
    Mixture("Qwen3 30B-A3B, gate and up", 128, 1536, 2048, 8),
)
Ways = dict[str, Callable[[Planes, Any, Tensor, Tensor], Tensor]]


@dataclass(frozen=True)
class Grouped:
    """`product(x, ends)` of rows that are sorted by their experts."""

    name: str
    product: Callable[[Tensor, Tensor], Tensor]
    weight: Tensor  # what it stands for
    read_bytes: float  # of one expert


def chosen(mixture: Mixture, tokens: int) -> Tensor:
    """Where each expert's rows end: int32, every token takes its experts at random."""
    took = torch.stack([torch.randperm(mixture.experts)[: mixture.taken] for _ in range(tokens)])
    counts = torch.bincount(took.flatten(), minlength=mixture.experts)
    return counts.cumsum(0).to(torch.int32)


def contenders(mixture: Mixture, ways: Ways) -> Iterator[Grouped]:
    shape = (mixture.experts, mixture.outputs, mixture.inputs)
    weight = (torch.randn(shape, device="cuda") * 0.02).bfloat16()
    yield Grouped(
        "torch bf16",
        lambda x, ends: torch._grouped_mm(x, weight.transpose(-2, -1), ends),
        weight,
        mixture.outputs * mixture.inputs * 2,
    )
    for bits in (0, 4):
        layout = Layout(mixture.inputs, 4, bits, exponent=-10)
        given = (layout.columns, *settings(layout))
        planes = compressed(weight, layout)
        decoded = phi.decode(*planes, *given, torch.bfloat16)
        name = f"phiquant index+{bits}" if bits else "phiquant index"
        read = sum(p.nbytes for p in planes if p is not None) / mixture.experts
        for way, product in ways.items():
            yield Grouped(name + way, partial(product, planes, given), decoded, read)


def compressed(weight: Tensor, layout: Layout) -> Planes:
    """Of experts, one after another."""
    flat = encode(weight.flatten(0, 1), layout, "joint" if layout.deviation_bits else "index")
    planes: Any = (p if p is None else p.unflatten(0, weight.shape[:2]) for p in flat)
    return Planes(*planes)


def _product(planes: Planes, given: Any, x: Tensor, ends: Tensor) -> Tensor:
    out: Tensor = phi.grouped_linear(x, *planes, ends, *given)
    return out


def _from_codes(planes: Planes, given: Any, x: Tensor, ends: Tensor) -> Tensor:
    out: Tensor = phi._grouped_few(x, *planes, ends, *given)
    return out


def _decoded_first(planes: Planes, given: Any, x: Tensor, ends: Tensor) -> Tensor:
    weight = phi.decode(*planes, *given, x.dtype)
    return torch._grouped_mm(x, weight.transpose(-2, -1), ends)


ONE_WAY: Ways = {"": _product}
BOTH_WAYS: Ways = {", from codes": _from_codes, ", decoded first": _decoded_first}


def check(of: Grouped, x: Tensor, ends: Tensor) -> None:
    """Raises `AssertionError` if a row is not its expert's product."""
    found, start = of.product(x, ends).float(), 0
    for expert, stop in enumerate(ends.tolist()):
        if stop > start:
            wanted = x[start:stop].float() @ of.weight[expert].float().t()
            error = (found[start:stop] - wanted).square().mean() / wanted.square().mean()
            assert error.sqrt() <= _TOLERANCE, (of.name, expert, error.sqrt().item())
        start = stop


def used(ends: Tensor) -> int:
    """How many experts have rows."""
    return int((ends.diff(prepend=ends.new_zeros(1)) > 0).sum())


def measure(mixture: Mixture, tokens: int, of: Grouped, bandwidth: float) -> dict[str, Any]:
    many = [chosen(mixture, tokens).cuda() for _ in range(_CALLS)]
    x = torch.randn(tokens * mixture.taken, mixture.inputs, device="cuda").bfloat16()
    check(of, x, many[0])
    time = microseconds([partial(of.product, x, ends) for ends in many])
    read = of.read_bytes * sum(map(used, many)) / _CALLS
    return {
        "mixture": mixture.name,
        "what": of.name,
        "tokens": tokens,
        "us": time,
        "of_copy": read / time * 1e6 / bandwidth,
    }


def measured(bandwidth: float, rows: list[int]) -> list[dict[str, Any]]:
    found = []
    for mixture in MIXTURES:
        torch_us: dict[int, float] = {}
        many = [each * mixture.experts // mixture.taken for each in rows] or TOKENS
        for of in contenders(mixture, BOTH_WAYS if rows else ONE_WAY):
            for tokens in many:
                row = measure(mixture, tokens, of, bandwidth)
                torch_us.setdefault(tokens, row["us"])
                found.append(row | {"times_torch": torch_us[tokens] / row["us"]})
    return found


def arguments() -> argparse.Namespace:
    parser = gpu_parser(__doc__)
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[], help="for each expert, on average"
    )
    return parsed(parser)


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    about = gpu_environment("benchmarks.cuda_experts")
    with torch.inference_mode():
        found = measured(copy_bandwidth(), options.rows)
    print(json.dumps(about, indent=1))
    header = ["mixture", "what", "tokens", "us", "of copy", "x torch"]
    print(table(header, (list(row.values()) for row in found)))
    if options.json:
        save(options.json, {"environment": about, "experts": found})


if __name__ == "__main__":
    main()
