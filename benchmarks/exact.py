"""Sizes of the exact tier on bf16 casts of real weights, next to other lossless formats.

    python -m benchmarks.exact [--models minilm whisper] [--json results.json]
    python -m benchmarks.exact --ideas
    python -m benchmarks.exact --quick

Every weight matrix of at least 64 columns is stored alone, by every format, and must come back bit
for bit before it counts. Sizes are bits a weight with everything a reader needs: scale words,
offsets, starts, padding, exceptions, checksum. The floor of formats that code the exponents is 8
bits for sign and mantissa and the entropy of a model's exponents; DFloat11's published figure
stands for it on large language models.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import zoo
from benchmarks.exact_ideas import IDEAS, counts_of
from benchmarks.lossless import (
    DFLOAT11_PUBLISHED,
    PEERS,
    MissingPeer,
    NotLossless,
    exponent_floor,
    packed_bytes,
    versions,
)
from benchmarks.matrices import matrices, sqnr
from benchmarks.reporting import Verdict, environment, save, table
from benchmarks.zoo import packages
from phiquant import PhiConfig, PhiTensor
from phiquant.codec import Layout, Planes

MODELS = ("minilm", "antiberty", "whisper", "efficientnet", "crepe", "smollm2")
FITS = ("joint", "exact")
SMOLLM2_STEP = 8  # every 8th matrix: it is large, and its layers are alike
ABOVE_FLOOR = {"minilm": 0.75, "antiberty": 0.75, "whisper": 0.75, "crepe": 1.5}
MINILM_GOAL = 11.15
QUICK_ROWS, QUICK_MATRICES = 16, 4
VARIANTS = {
    "4+4 g64": {},
    "4+4 g128": {"group_size": 128},
    "4+4 g32": {"group_size": 32},
    "5+4 g64": {"index_bits": 5},
    "5+4 g128": {"index_bits": 5, "group_size": 128},
    "3+4 g64": {"index_bits": 3},
    "4+8 g64": {"deviation_bits": 8},
    "4+2 g64": {"deviation_bits": 2},
}
IDEA_LAYOUTS = ("4+4 g64", "5+4 g64")
Named = dict[str, Tensor]


def weights_of(name: str, quick: bool) -> Named:
    """bf16 casts of a model's matrices, by name; a few rows of a few of them if ``quick``."""
    found = matrices(zoo.model(name).load(), convolutions=name == "crepe")
    found = found[::SMOLLM2_STEP] if name == "smollm2" else found
    if quick:
        found = found[:QUICK_MATRICES]
    rows = QUICK_ROWS if quick else None
    return {m.name: m.weight[:rows].bfloat16().contiguous() for m in found}


def exact(weight: Tensor, **config: Any) -> PhiTensor:
    """The exact form of a weight. Raises `NotLossless` unless it decodes to the same bits."""
    tensor = PhiTensor.from_hp(weight, PhiConfig(exact=True, **config))
    if not torch.equal(tensor.dequantize().view(torch.int16), weight.view(torch.int16)):
        raise NotLossless(f"phiquant {config}: a weight of {tuple(weight.shape)} came back changed")
    return tensor


def bits(weights: Named, size: Callable[[Tensor], int]) -> float:
    """Bits a weight, for a function that gives a matrix's bytes."""
    total = sum(weight.numel() for weight in weights.values())
    return 8 * sum(size(weight) for weight in weights.values()) / total


def measure(weights: Named, peers: list[str]) -> dict[str, Any]:
    """Sizes of one model: bits a weight of every format, and of phiquant's planes."""
    results: dict[str, Any] = {
        "matrices": len(weights),
        "weights": sum(weight.numel() for weight in weights.values()),
        "floor": exponent_floor(weights.values()),
    }
    for fit in FITS:
        tensors = {name: exact(weight, fit=fit) for name, weight in weights.items()}
        results[f"phiquant {fit}"] = by_planes(tensors)
    for peer in peers:
        results[peer] = bits(weights, lambda weight, peer=peer: packed_bytes(peer, weight))
    return results


def by_planes(tensors: dict[str, PhiTensor]) -> dict[str, Any]:
    """Bits a weight in all, of each plane, and of the largest matrix by its bits."""
    total = sum(tensor.numel() for tensor in tensors.values())
    planes = {
        name: sum(p.nbytes for t in tensors.values() if (p := getattr(t.planes, name)) is not None)
        for name in Planes._fields
    }
    stored = sum(tensor.stored_bytes for tensor in tensors.values())
    worst = max(tensors, key=lambda name: tensors[name].bits_per_weight)
    return {
        "bits": 8 * stored / total,
        "planes": {name: 8 * octets / total for name, octets in planes.items()},
        "worst": {worst: tensors[worst].bits_per_weight},
    }


def ideas(weights: Named) -> dict[str, dict[str, float]]:
    """Bits a weight of the exact tier with each idea, for two layouts and every fit."""
    total = sum(weight.numel() for weight in weights.values())
    columns = {f"{layout} {fit}": (layout, fit) for layout in IDEA_LAYOUTS for fit in FITS}
    sums = {idea: dict.fromkeys(columns, 0.0) for idea in IDEAS}
    for column, (layout, fit) in columns.items():
        for weight in weights.values():
            tensor = exact(weight, fit=fit, **VARIANTS[layout])
            lossy = 8 * sum(p.nbytes for p in tensor.planes[:4] if p is not None)
            counts = counts_of(tensor.planes, Layout(*tensor.op_arguments))
            for idea, size in IDEAS.items():
                sums[idea][column] += (lossy + size(counts)) / total
    return sums


def variants(weights: Named) -> dict[str, dict[str, float]]:
    """Bits a weight and SQNR of both lossy tiers with other layouts and both fits."""
    results = {}
    for name, config in VARIANTS.items():
        for fit in FITS:
            tensors = {key: exact(weight, fit=fit, **config) for key, weight in weights.items()}
            results[f"{name} {fit}"] = {"bits": by_planes(tensors)["bits"]} | {
                tier: mean_sqnr(weights, {key: t.at(depth) for key, t in tensors.items()})
                for tier, depth in (("index", 0), ("deviation", config.get("deviation_bits", 4)))
            }
    return results


def mean_sqnr(weights: Named, tensors: dict[str, PhiTensor]) -> float:
    found = [sqnr(weights[name], t.dequantize(torch.float32)) for name, t in tensors.items()]
    return sum(found) / len(found)


def verdicts(models: dict[str, Any], found: dict[str, Any]) -> list[Verdict]:
    """How far each fit stays below each bar; not measured without the model."""
    checks = []
    for name, above in ABOVE_FLOOR.items():
        for fit in FITS:
            result = models.get(name)
            room = result and result["floor"] + above - result[f"phiquant {fit}"]["bits"]
            checks.append(Verdict(f"{name} {fit}, below the floor + {above}", 0.0, room, "bits"))
    best = min((each["bits"] for each in found.values()), default=None)
    room = None if best is None else MINILM_GOAL - best
    return checks + [Verdict(f"minilm, any layout, below {MINILM_GOAL}", 0.0, room, "bits")]


def summary(models: dict[str, Any], peers: list[str]) -> str:
    header = ["bits a weight", "weights", "floor", *(f"phiquant {fit}" for fit in FITS), *peers]
    rows = []
    for name, result in models.items():
        ours = [result[f"phiquant {fit}"]["bits"] for fit in FITS]
        sizes = [result["floor"], *ours, *(result[peer] for peer in peers), DFLOAT11_PUBLISHED]
        rows.append([name, result["weights"], *thousandths(sizes)])
    return table([*header, "DFloat11 published"], rows)


def plane_table(models: dict[str, Any]) -> str:
    rows = [
        [f"{name} {fit}", *thousandths(result[f"phiquant {fit}"]["planes"].values())]
        for name, result in models.items()
        for fit in FITS
    ]
    return table(["bits a weight", *Planes._fields], rows)


def thousandths(sizes: Iterable[float]) -> list[str]:
    return [f"{size:.3f}" for size in sizes]


def installed_peers() -> tuple[list[str], dict[str, str]]:
    """Peers that run, and why the others do not."""
    probe, missing = torch.zeros(64, dtype=torch.bfloat16), {}
    for peer in PEERS:
        try:
            packed_bytes(peer, probe)
        except MissingPeer as error:
            missing[peer] = str(error)
    return [peer for peer in PEERS if peer not in missing], missing


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--ideas", action="store_true", help="also what ideas give on MiniLM")
    parser.add_argument("--quick", action="store_true", help="a few rows of four matrices a model")
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser.parse_args()


def main() -> None:
    """The command line."""
    arguments = _arguments()
    peers, missing = installed_peers()
    output = environment("benchmarks.exact")
    output["versions"] |= versions()
    print(*(f"{peer} is left out: {why}" for peer, why in missing.items()), sep="\n")
    models: dict[str, Any] = {}
    found: dict[str, dict[str, float]] = {}
    for name in arguments.models:
        try:
            weights = weights_of(name, arguments.quick)
        except packages.MissingPackage as error:
            print(f"{name} is left out: {error}")
            continue
        models[name] = measure(weights, peers)
        print(f"measured {name}", flush=True)
        if arguments.ideas and name == "minilm":
            found = variants(weights)
            output |= {"ideas": ideas(weights), "variants": found}
    checks = [] if arguments.quick else verdicts(models, found)
    report(models, peers, output)
    print("", *checks, sep="\n")
    output |= {"models": models, "left_out": missing, "quick": arguments.quick}
    if arguments.json:
        save(arguments.json, output | {"verdicts": [asdict(check) for check in checks]})


def report(models: dict[str, Any], peers: list[str], output: dict[str, Any]) -> None:
    """Print what was measured."""
    print("", summary(models, peers), "", plane_table(models), sep="\n")
    if "ideas" in output:
        header = ["MiniLM, bits a weight", *next(iter(output["ideas"].values()))]
        rows = [[idea, *thousandths(each.values())] for idea, each in output["ideas"].items()]
        print("", table(header, rows), sep="\n")
        rows = [
            [name, *thousandths([each["bits"]]), each["index"], each["deviation"]]
            for name, each in output["variants"].items()
        ]
        print("", table(["MiniLM", "bits", "index dB", "deviation dB"], rows), sep="\n")


if __name__ == "__main__":
    main()
