"""Tokens a second of greedy decoding, batch 1: `python -m benchmarks.decode [--json PATH]`.

SmolLM2-135M, and a model of Llama-3.2-1B's shape with random weights (speed does not depend on
them). transformers in bf16, phiquant through transformers with the same loop, and llama.cpp on
files of the same weights. Logits are checked against transformers' before anything is timed; then
all take turns, and the median time of a token counts. Prompts are not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from benchmarks import bandwidth
from benchmarks.decoders import (
    ALL_INDEX,
    COMPILED,
    INDEX,
    INT8_ACTIVATION,
    LLAMA_1B,
    PLAIN,
    Decoder,
    load_smollm2,
    random_llama,
    transformers_decoders,
)
from benchmarks.llama_cpp_api import features
from benchmarks.llama_cpp_decoder import llama_cpp_decoders
from benchmarks.reporting import Verdict, environment, save, table
from benchmarks.timing import take_turns
from benchmarks.unavailable import Unavailable
from benchmarks.zoo.packages import MissingPackage
from phiquant import ops

LARGE, SMALL = "llama-1b, random", "SmolLM2-135M"
Q4_0 = "llama.cpp Q4_0"
_READER_BYTES = 256_000_000
BARS = (  # on the large model: how many times as fast as what
    (INDEX, PLAIN, 4.0),
    (INDEX + COMPILED, PLAIN, 4.0),
    (ALL_INDEX, PLAIN, 4.0),
    (ALL_INDEX + COMPILED, PLAIN, 4.0),
    (INT8_ACTIVATION, Q4_0, 1.0),  # which rounds its input, too
    (INT8_ACTIVATION + COMPILED, Q4_0, 1.0),
)


def check(decoder: Decoder, wanted: torch.Tensor) -> float:
    """The relative error of its logits. Raises `AssertionError` if it is above its tolerance."""
    found = decoder.logits()
    error = ((found - wanted).norm() / wanted.norm()).item()
    if not error <= decoder.tolerance:
        raise AssertionError(
            f"{decoder.name}: logits are off by {error:.3f}, allowed is {decoder.tolerance:g}"
        )
    return error


def measure(
    decoders: Iterable[Decoder],
    rounds: int,
    tokens: int,
    seconds: float,
    progress: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """One row for each decoder; the first is the plain model that the others are checked with."""
    ready, errors, wanted = [], {}, None
    for decoder in decoders:
        progress(f"checking {decoder.name}")
        wanted = decoder.logits() if wanted is None else wanted
        errors[decoder.name] = check(decoder, wanted)
        ready.append(decoder)
    taken: dict[str, list[float]] = {decoder.name: [] for decoder in ready}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for decoder in ready:
            taken[decoder.name] += decoder.turn(tokens, seconds)
    reader = bandwidth.product_reader(_READER_BYTES)
    gb_per_s = reader.bytes / take_turns({"reader": reader.run}, 20)["reader"].median / 1e9
    for decoder in ready:
        decoder.close()
    return [result(d, taken[d.name], errors[d.name], gb_per_s) for d in ready]


def result(decoder: Decoder, taken: list[float], error: float, bandwidth: float) -> dict[str, Any]:
    median = statistics.median(taken)
    return {
        "what": decoder.name,
        "tokens_per_s": 1 / median,
        "best_tokens_per_s": 1 / min(taken),
        "tokens": len(taken),
        "read_mb": decoder.read_bytes / 1e6,
        "gb_per_s": decoder.read_bytes / median / 1e9,
        "of_bandwidth": decoder.read_bytes / median / 1e9 / bandwidth,
        "bandwidth_gb_per_s": bandwidth,
        "logits_error": error,
    }


def report(model: str, rows: list[dict[str, Any]]) -> str:
    keys = ("tokens_per_s", "best_tokens_per_s", "read_mb", "gb_per_s", "of_bandwidth")
    plain = rows[0]["tokens_per_s"]
    cells = (
        [r["what"], *(r[k] for k in keys), r["tokens_per_s"] / plain, r["logits_error"]]
        for r in rows
    )
    header = [
        model, "tokens/s", "best", "MB a token", "GB/s", "of bandwidth", "x bf16", "logits error",
    ]  # fmt: skip
    return table(header, cells)


def verdicts(rows: list[dict[str, Any]]) -> list[Verdict]:
    speed = {row["what"]: row["tokens_per_s"] for row in rows}

    def ratio(what: str, against: str) -> float | None:
        return speed[what] / speed[against] if {what, against} <= speed.keys() else None

    return [
        Verdict(f"{what} against {against}, {LARGE}", bar, ratio(what, against), "x")
        for what, against, bar in BARS
    ]


def run(
    model: LlamaForCausalLM, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every decoder that there is, and for each that is missing, why."""
    missing: list[str] = []

    def decoders(folder: Path) -> Iterable[Decoder]:
        yield from transformers_decoders(model, options.compile)
        yield from llama_cpp_decoders(model, folder, options.threads, missing)

    with tempfile.TemporaryDirectory() as folder:
        chosen = decoders(Path(folder))
        return measure(chosen, options.rounds, options.tokens, options.seconds), missing


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", choices=("small", "large"), default=None)
    parser.add_argument("--vocabulary", type=int, default=LLAMA_1B["vocab_size"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="for each turn")
    parser.add_argument("--seconds", type=float, default=4.0, help="after which a turn ends")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too (minutes)")
    options = parser.parse_args()
    if not ops.compiled:
        parser.error("the compiled kernels are not built")
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    about, results = environment("benchmarks.decode"), {}
    makers = {
        "small": (SMALL, load_smollm2),
        "large": (LARGE, lambda: random_llama(vocab_size=options.vocabulary)),
    }
    missing: list[str] = []
    for size in options.models or makers:
        name, make = makers[size]
        try:
            results[name], absent = run(make(), options)
        except MissingPackage as reason:
            missing.append(f"{name}: {reason}")
            continue
        missing += absent
        print(report(name, results[name]), end="\n\n", flush=True)
    about["vocabulary"], about["last_level_cache"] = (
        options.vocabulary,
        bandwidth.last_level_cache(),
    )
    with suppress(Unavailable):
        about["llama.cpp"] = features()
    print(json.dumps(about, indent=1))
    print(*verdicts(results.get(LARGE, [])), sep="\n")
    print(*(f"not measured: {reason}" for reason in dict.fromkeys(missing)), sep="\n")
    if options.json:
        save(options.json, {"environment": about, "decode": results, "missing": missing})


if __name__ == "__main__":
    main()
