"""Tokens a second of whole models on a GPU, batch 1: `python -m benchmarks.cuda_decode`.

Llama-3.1-8B's shape with random weights (speed does not depend on them), in bf16 and at some tiers.
The step of one token is compiled without a graph break and has a static cache; one CUDA graph holds
all of it, or with `--torch-graphs` torch makes the graphs. Logits are checked against those of
a plain eager model of the same, decoded weights before anything is timed; then the time of many
tokens counts. Beside it: what the host took, and the kernels, by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks.cuda_decoder import (
    DEFAULT,
    EXACT,
    LLAMA_8B,
    LLAMA_8B_LAYERS,
    PLAIN,
    TIERS,
    Decoder,
    compressed,
    decoded,
    random_llama,
)
from benchmarks.cuda_options import gpu_environment, gpu_parser, parsed
from benchmarks.cuda_profile import profile
from benchmarks.reporting import Verdict, save, table
from phiquant import view
from phiquant.integrations.hf_attention import NAME as ATTENTION

GOALS = {"phiquant index": 2.6, "phiquant index+4": 1.7}  # times as fast as bf16


def measure(decoder: Decoder, wanted: torch.Tensor, tokens: int) -> dict[str, Any]:
    """A row of results.

    Raises:
        AssertionError: its logits are not those of a plain model of the same weights.
    """
    error = decoder.check(wanted)
    seconds, host = decoder.time(tokens)
    kernels = profile(decoder)
    return {
        "what": decoder.name,
        "graph": "the step's" if decoder.captured else "torch's",
        "tokens_per_s": 1 / seconds,
        "ms": seconds * 1e3,
        "host_ms": host * 1e3,
        "kernels_ms": kernels.busy_ms,
        "products_ms": kernels.products_ms,
        "graph_launches": kernels.graph_launches,
        "read_mb": decoder.read_bytes / 1e6,
        "tb_per_s": decoder.read_bytes / seconds / 1e12,
        "logits_error": error,
        "kernels": kernels.longest,
    }


def report(rows: list[dict[str, Any]]) -> str:
    keys = ("tokens_per_s", "ms", "host_ms", "kernels_ms", "products_ms", "read_mb", "tb_per_s")
    plain = {row["graph"]: row["tokens_per_s"] for row in rows if row["what"] == PLAIN}
    cells = (
        [
            row["what"],
            row["graph"],
            row["tokens_per_s"] / plain[row["graph"]],
            *(row[key] for key in keys),
            row["graph_launches"],
            row["logits_error"],
        ]
        for row in rows
    )
    header = [
        "what", "graph", "x bf16", "tokens/s", "ms", "host", "kernels", "products", "MB a token",
        "TB/s", "graphs a token", "logits error",
    ]  # fmt: skip
    return table(header, cells)


def report_kernels(row: dict[str, Any]) -> str:
    return table([f"{row['what']}, {row['graph']}", "ms a token", "launches"], row["kernels"])


def verdicts(rows: list[dict[str, Any]], whole: bool) -> list[Verdict]:
    """`whole`: whether all layers were there."""
    speed = {row["what"]: row["tokens_per_s"] for row in rows if row["graph"] == "the step's"}
    return [
        Verdict(
            f"{what} against {PLAIN}, Llama-3.1-8B's shape, compiled, batch 1",
            bar,
            speed[what] / speed[PLAIN] if whole and what in speed else None,
            "x",
        )
        for what, bar in GOALS.items()
    ]


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def add(name: str, model: torch.nn.Module, plain: torch.nn.Module) -> None:
        wanted = Decoder(name, plain, options.context, captured=False).logits(eager=True)
        del plain
        for captured in (True, False) if options.torch_graphs else (True,):
            print(f"{name} ...", flush=True)
            decoder = Decoder(name, model, options.context, captured)
            rows.append(measure(decoder, wanted, options.tokens))
            decoder.close()

    model = random_llama(num_hidden_layers=options.layers)
    model.set_attn_implementation(options.attention)
    add(PLAIN, model, model)
    for config in (DEFAULT, EXACT):
        chosen = [name for name in options.tiers if TIERS[name][0] == config]
        small = compressed(model, config) if chosen else model
        for name in chosen:
            read = view(small, TIERS[name][1])
            add(name, read, decoded(read))
        del small
    return rows


def arguments() -> argparse.Namespace:
    parser = gpu_parser(__doc__)
    parser.add_argument("--layers", type=int, default=LLAMA_8B_LAYERS)
    parser.add_argument("--tiers", nargs="+", choices=list(TIERS), default=list(TIERS)[:2])
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument(
        "--attention",
        choices=("sdpa", ATTENTION),
        default="sdpa",
        help="of all models: transformers' own, or one that does not copy keys and values",
    )
    parser.add_argument("--context", type=int, default=512, help="places in the cache")
    parser.add_argument(
        "--torch-graphs", action="store_true", help='also mode="reduce-overhead" (minutes)'
    )
    parser.add_argument("--kernels", action="store_true", help="also list the longest kernels")
    return parsed(parser)


def main() -> None:
    options = arguments()
    about = gpu_environment("benchmarks.cuda_decode")
    about["model"] = LLAMA_8B | {"num_hidden_layers": options.layers}
    about["attention"] = options.attention
    print(json.dumps(about, indent=1), flush=True)
    rows = run(options)
    print(report(rows))
    if options.kernels:
        print(*(report_kernels(row) for row in rows), sep="\n\n")
    print(*verdicts(rows, options.layers == LLAMA_8B_LAYERS), sep="\n")
    if options.json:
        save(options.json, {"environment": about, "decode": rows})


if __name__ == "__main__":
    main()
