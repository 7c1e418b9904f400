"""How often a draft's next token is the exact model's: `python -m benchmarks.draft_agreement`.

SmolLM2-135M, greedy, `phiquant.generate` with exact weights and a fixed number of drafted tokens by
either shallower tier. Agreement is the chance that a drafted token holds if those before it did,
which is what `benchmarks.speculation --models large` imposes where weights are random.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import phiquant
from benchmarks.agreement import DRAFTS
from benchmarks.reporting import environment, save, table
from benchmarks.speculators import prompts
from benchmarks.zoo import smollm2
from phiquant.speculative import Statistics
from phiquant.speculative.statistics import Round

GIVEN = 0.85  # of indices: the goal of the large model is set at it


def exact_model() -> nn.Module:
    model: nn.Module = smollm2.load().bfloat16().float()
    phiquant.quantize_(model, phiquant.PhiConfig(exact=True), progress=False)
    return model


def agreement(rounds: Iterable[Round]) -> tuple[int, int]:
    """Of one sequence: how many drafted tokens held, and how many were tried: until one fails."""
    pairs = [(r.accepted, min(r.accepted + 1, r.drafted)) for r in rounds]
    return sum(held for held, _ in pairs), sum(tried for _, tried in pairs)


def measure(
    model: nn.Module, draft: nn.Module, drafted: int, texts: list[Tensor], tokens: int
) -> dict[str, Any]:
    told = Statistics()
    for ids in texts:
        phiquant.generate(
            model,
            ids,
            max_new_tokens=tokens,
            eos_token_id=[],
            draft=draft,
            draft_tokens=drafted,
            statistics=told,
        )
    held, tried = agreement(told.rounds)
    share = held / tried
    return {
        "drafted": drafted,
        "held": held,
        "tried": tried,
        "agreement": share,
        "error": math.sqrt(share * (1 - share) / tried),
        "tokens_a_pass": told.tokens_per_pass,
    }


def scaled(index: float, deep: float, given: float = GIVEN) -> float:
    """The agreement of a deeper draft where indices have `given`: failures keep their ratio.

    NaN if indices never failed.
    """
    return 1 - (1 - given) * (1 - deep) / (1 - index) if index < 1 else math.nan


def report(rows: list[dict[str, Any]]) -> str:
    header = ["draft", "drafted", "agreement", "standard error", "tried", "tokens a pass"]
    keys = ("draft", "drafted", "agreement", "error", "tried", "tokens_a_pass")
    return table(header, ([row[key] for key in keys] for row in rows))


def conclusion(rows: list[dict[str, Any]]) -> str:
    """Of all rounds of each draft together."""
    index, deep = (
        sum(row["held"] for row in rows if row["draft"] == by)
        / sum(row["tried"] for row in rows if row["draft"] == by)
        for by in DRAFTS
    )
    return (
        f"indices {index:.3f}, 8.25 bits {deep:.4f}: "
        f"with {GIVEN} for indices the same ratio of failures is {scaled(index, deep):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128, help="for each prompt")
    parser.add_argument("--drafted", type=int, nargs="+", default=[4, 7], help="tokens a round")
    options = parser.parse_args()
    about = environment("benchmarks.draft_agreement")
    print(json.dumps(about), flush=True)
    model, texts, rows = exact_model(), prompts(options.prompts), []
    for by, tier in DRAFTS.items():
        draft = phiquant.draft(model, tier=tier)
        for drafted in options.drafted:
            print(time.strftime("%H:%M:%S"), f"{drafted} drafted by {by}", flush=True)
            rows.append({"draft": by} | measure(model, draft, drafted, texts, options.tokens))
    print(report(rows), conclusion(rows), sep="\n")
    if options.json:
        save(options.json, {"environment": about, "rows": rows})


if __name__ == "__main__":
    main()
