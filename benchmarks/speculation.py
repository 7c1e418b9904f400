"""Tokens a second of models that draft for themselves: `python -m benchmarks.speculation`.

SmolLM2-135M: each tier alone and with drafts of its own index plane, and bf16 alone, taking turns
prompt by prompt; the loop is `phiquant.generate` for all, greedy, prompts counted. Beside the
times: how many drafts were accepted, what was read for a token, and of how many prompts the text is
that of the tier alone. With `--device cuda --models large` a model of Llama-3.1-8B's shape with
random weights, whose drafts are accepted by lot: acceptance is imposed there, not found.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting import Verdict, environment, save, table
from benchmarks.speculators import (
    DRAFTS,
    pass_times,
    prompts,
    rows,
    smollm2_speculators,
    take_turns,
)
from phiquant import ops

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BARS = {"exact": 1.5, "8.25 bits": 1.2}  # SmolLM2 on two cores, times as fast as alone
_WIDTHS = {"cpu": (1, 2, 3, 5), "cuda": (1, 4, 8)}  # tokens of the passes that are timed alone
_KEYS = (
    "tokens_per_s",
    "x_alone",
    "x_bf16",
    "x_alone_in_all",
    "acceptance",
    "repeats_accepted",
    "repeats_a_token",
    "tokens_a_pass",
    "drafts_a_round",
    "planes_a_token",
    "mb_a_token",
    "ties",
)


def report(found: list[dict[str, Any]], title: str) -> str:
    header = [
        title, "tokens/s", "x alone", "x bf16", "x alone, in all", "accepted",
        "repeats accepted", "repeats a token", "tokens a pass", "drafts a round",
        "planes a token", "MB a token", "ties", "identical",
    ]  # fmt: skip
    cells = (
        [row["what"], *(row[key] for key in _KEYS), f"{row['identical']}/{row['of']}"]
        for row in found
    )
    return table(header, cells)


def verdicts(found: list[dict[str, Any]]) -> list[Verdict]:
    by_name = {row["what"]: row for row in found}
    made = []
    for tier, bar in BARS.items():
        row = by_name[tier + DRAFTS]
        made.append(Verdict(f"SmolLM2, {tier} with drafts against alone", bar, row["x_alone"], "x"))
        made.append(
            Verdict(f"SmolLM2, {tier}: texts identical", row["of"], row["identical"], "texts")
        )
    return made


def of_llama(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import agreement  # needs a GPU

    imposed = dict(zip(agreement.DRAFTS, options.agreement, strict=True))
    found = agreement.measure(
        options.tiers, options.layers, options.draft_tokens, imposed, options.tokens
    )
    what = f"Llama-3.1-8B's shape, {options.layers} layers, {found['gpu']}"
    print("Weights are random: drafted tokens are accepted by lot,", imposed)
    print(agreement.report(found["rows"], what), end="\n\n")
    print(*agreement.verdicts(found["rows"], options), sep="\n", flush=True)
    print("ms of a pass, by its model and tokens:", json.dumps(found["passes_ms"], indent=1))
    print(*agreement.bounds(found["passes_ms"], options.tiers, imposed), sep="\n")
    return found


def passes_of_smollm2(options: argparse.Namespace) -> list[list[Any]]:
    """Of each tier and way."""
    made = smollm2_speculators(DTYPES[options.dtype], options.device, None, False)
    models = {each.name: each.model for each in made if each.name in BARS}
    widths = _WIDTHS[options.device]
    return [
        [f"{tier}, {way}", *pass_times(model, way == "compiled", widths)]
        for way in options.ways
        for tier, model in models.items()
    ]


def of_smollm2(options: argparse.Namespace, compile: bool) -> list[dict[str, Any]]:
    dtype = DTYPES[options.dtype]
    made = smollm2_speculators(dtype, options.device, options.draft_tokens, compile)
    take_turns(made, prompts(options.prompts), options.tokens, tell)
    return rows(made)


def tell(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128, help="for each prompt")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of activations")
    parser.add_argument("--draft-tokens", type=int, help="as many as pay by default")
    parser.add_argument("--passes", action="store_true", help="only ms of SmolLM2's passes")
    parser.add_argument("--models", nargs="+", choices=("small", "large"), default=["small"])
    parser.add_argument("--tiers", nargs="+", choices=tuple(BARS), default=list(BARS))
    parser.add_argument("--layers", type=int, default=32, help="of the large model")
    parser.add_argument(
        "--agreement",
        nargs=2,
        type=float,
        default=[0.85, 0.978],
        help="imposed on the large one: of drafts by indices, and by 8.25 bits",
    )
    ways = "eager", "compiled"
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways, help="of the small")
    options = parser.parse_args()
    if not (ops.compiled if options.device == "cpu" else ops.compiled_cuda):
        parser.error("the compiled kernels are not built")
    if "large" in options.models and options.device != "cuda":
        parser.error("the large model needs --device cuda")
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    about = environment("benchmarks.speculation")
    results: dict[str, Any] = {}
    print(json.dumps(about, indent=1), flush=True)
    if options.passes:
        header = ["SmolLM2, ms of a pass", "draft"]
        header += [f"of {width}" for width in _WIDTHS[options.device]]
        print(table(header, passes_of_smollm2(options)))
        return
    if "large" in options.models:
        results["llama-8b, random"] = of_llama(options)
    for how in options.ways if "small" in options.models else ():
        found = of_smollm2(options, how == "compiled")
        results[how] = found
        print(report(found, f"SmolLM2, {options.device}, {options.dtype}, {how}"), end="\n\n")
        print(*verdicts(found), sep="\n", flush=True)
    if options.json:
        save(options.json, {"environment": about, "results": results})


if __name__ == "__main__":
    main()
