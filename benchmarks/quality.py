"""Error and end metrics of real models at every tier, next to the formats of today.

    python -m benchmarks.quality [--models minilm whisper] [--json results.json]
    python -m benchmarks.quality --quick
    python -m benchmarks.quality --generation

Every weight matrix of at least 64 columns (a full group) goes through every method and comes back
as fp32; embeddings and output heads that are tied to one stay as they are. SQNR is measured on each
matrix, the end metric with all matrices of the model replaced.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks import generation, zoo
from benchmarks.matrices import Matrix, matrices, replaced, sqnr
from benchmarks.methods import Method, decode_model, label, methods
from benchmarks.peers import Decoded
from benchmarks.reporting import Verdict, environment, save, table
from benchmarks.zoo import packages, speech, texts

# SmolLM2's weights already sit on a 4-bit lattice: it is judged by --generation alone.
NATURAL = ("minilm", "antiberty", "whisper", "efficientnet", "crepe")
# The bars are means over these; CREPE's tails are reported beside them.
JUDGED = NATURAL[:4]
_QUICK_MATRICES = 4
_BARS = (
    ("fit=joint, index tier over NF4 absmax", label("phi 4+4", 0), "NF4 absmax g64", 0.9),
    ("fit=joint, 8.25 bits over int8 g64", label("phi 4+4", 4), "int8 g64", 0.9),
    ("exact=True, index tier over NF4 absmax", label("phi 4+4 exact", 0), "NF4 absmax g64", 0.9),
    ("exact=True, 8.25 bits over int8 g64", label("phi 4+4 exact", 4), "int8 g64", 0.9),
    ("fit=index, index tier over NF4 absmax", label("phi 4+4 fit=index", 0), "NF4 absmax g64", 1.0),
    ("fit=deviation, 8.25 bits over int8 g64", label("phi 4+4 fit=deviation", 4), "int8 g64", 1.1),
)
Results = dict[str, dict[str, Any]]


def measure(name: str, chosen: Iterable[Method], metrics: str, limit: int | None) -> Results:
    """One model through the methods: label -> bits, SQNR and end metrics.

    Args:
        name: one of `NATURAL`.
        chosen: what to measure.
        metrics: of which tiers to measure end metrics: "headline", "all" or "none".
        limit: how many matrices to take, all if None.
    """
    module = zoo.model(name)
    model = module.load()
    found = matrices(model, convolutions=name == "crepe")[:limit]
    results: Results = {}
    if metrics != "none":
        results["original"] = {"bits": 32.0, "metrics": module.evaluate(model)}
    for method in chosen:
        for key, decoded in decode_model(found, method).items():
            _progress(f"{name}: {key}")
            results[key] = _errors(found, decoded)
            if metrics == "all" or (metrics == "headline" and method.headline):
                results[key]["metrics"] = _evaluate(module.evaluate, model, found, decoded)
    _progress("")
    return results


def _errors(found: list[Matrix], decoded: dict[str, Decoded]) -> dict[str, Any]:
    weights = {matrix.name: matrix.weight.numel() for matrix in found}
    layers = {matrix.name: sqnr(matrix.weight, decoded[matrix.name].weight) for matrix in found}
    total = sum(weights.values())
    return {
        "bits": sum(decoded[name].bits * count for name, count in weights.items()) / total,
        "sqnr_db": math.fsum(layers.values()) / len(layers),
        "sqnr_db_weighted": sum(layers[name] * count for name, count in weights.items()) / total,
        "sqnr_db_layers": {name: round(value, 3) for name, value in layers.items()},
    }


def _evaluate(
    evaluate: Any, model: nn.Module, found: list[Matrix], decoded: dict[str, Decoded]
) -> dict[str, float]:
    with replaced(found, {name: tier.weight for name, tier in decoded.items()}):
        return evaluate(model)


def verdicts(results: dict[str, Results]) -> list[Verdict]:
    """The bars on SQNR; not measured unless both tiers were, on all of `JUDGED`."""

    def lead(ours: str, theirs: str) -> float | None:
        if any({ours, theirs} - results.get(name, {}).keys() for name in JUDGED):
            return None
        leads = [
            results[name][ours]["sqnr_db"] - results[name][theirs]["sqnr_db"] for name in JUDGED
        ]
        return math.fsum(leads) / len(leads)

    return [Verdict(claim, bar, lead(ours, theirs)) for claim, ours, theirs, bar in _BARS]


def summary(results: dict[str, Results]) -> str:
    """SQNR of every tier and model, fewest bits first."""
    first = next(iter(results.values()))
    keys = sorted((key for key in first if key != "original"), key=lambda k: first[k]["bits"])
    judged = [name for name in JUDGED if name in results]
    rows = []
    for key in keys:
        values = [result[key]["sqnr_db"] for result in results.values()]
        mean = (
            math.fsum(results[n][key]["sqnr_db"] for n in judged) / len(judged) if judged else None
        )
        rows.append([key, first[key]["bits"], *values, mean])
    return table(["SQNR, dB", "bits", *results, f"mean of {len(judged)}"], rows)


def end_metrics(name: str, results: Results) -> str:
    """End metrics of one model."""
    measured = {key: value for key, value in results.items() if "metrics" in value}
    names = list(results["original"]["metrics"])
    ordered = sorted(measured.items(), key=lambda item: -item[1]["bits"])
    rows = [
        [key, value["bits"], value.get("sqnr_db"), *(value["metrics"][n] for n in names)]
        for key, value in ordered
    ]
    return table([name, "bits", "SQNR, dB", *names], rows)


def _progress(what: str) -> None:
    """One line that rewrites itself on a terminal, a line each elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
    elif what:
        print(what, file=sys.stderr, flush=True)


def _data() -> dict[str, str]:
    return texts.sources() | {"speech": speech.source()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=NATURAL, default=NATURAL)
    parser.add_argument(
        "--methods", nargs="+", help="only methods whose names contain one of these"
    )
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument(
        "--metrics", choices=("headline", "all", "none"), default="headline", help="of which tiers"
    )
    parser.add_argument("--quick", action="store_true", help="errors of four matrices a model")
    parser.add_argument("--generation", action="store_true", help="SmolLM2's greedy text instead")
    return parser.parse_args()


def main() -> None:
    """The command line."""
    arguments = _arguments()
    output = environment("benchmarks.quality") | {"data": _data()}
    print(*(f"{key}: {value}" for key, value in output["data"].items()), "", sep="\n")
    if arguments.generation:
        tiers = generation.measure(_progress)
        output["generation"], checks = tiers, generation.verdicts(tiers)
        print(generation.summary(tiers))
    else:
        chosen = [
            method
            for method in methods()
            if not arguments.methods or any(part in method.name for part in arguments.methods)
        ]
        scope = ("none", _QUICK_MATRICES) if arguments.quick else (arguments.metrics, None)
        results: dict[str, Results] = {}
        for name in arguments.models:
            try:
                results[name] = measure(name, chosen, *scope)
            except (packages.MissingPackage, speech.MissingSpeech) as error:
                print(f"{name} is left out: {error}\n", flush=True)
                continue
            if scope[0] != "none":
                print(end_metrics(name, results[name]), end="\n\n", flush=True)
        print(summary(results) if results else "no model is installed")
        output["models"], checks = results, verdicts(results)
    print("", *checks, sep="\n")
    if arguments.json:
        save(arguments.json, output | {"verdicts": [asdict(check) for check in checks]})


if __name__ == "__main__":
    main()
