"""A model of random weights whose drafts are accepted by lot, on a GPU.

The model of agreement: each drafted token is accepted with one probability, whatever came before,
as drawn by the host; after the first that is not, the verifying model's own token follows. All
passes are run as they would be: drafts one by one, one verification, one wait for what came out;
every pass compiled and put into a CUDA graph. Near ties are not looked at, since random weights
have nothing else.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import phiquant
from benchmarks.cuda_decoder import EXACT, LLAMA_8B_LAYERS, compressed, random_llama
from benchmarks.greedy import PROMPT
from benchmarks.reporting import Verdict, table
from phiquant.speculative.choice import Decide, Greedy
from phiquant.speculative.choice import Verdict as Chosen
from phiquant.speculative.pace import Pace
from phiquant.speculative.passes import Passes
from phiquant.speculative.rounds import decode
from phiquant.speculative.sequences import Sequences
from phiquant.speculative.statistics import Reading, Statistics

BF16, DRAFTS = "bf16 alone", ", drafts"
TIERS = {"exact": "exact", "8.25 bits": "deviation"}
BARS = {"exact": 1.35, "8.25 bits": 1.6}  # times as fast as bf16, at an agreement of 0.85
_BARS_AT = 0.85
_PLACES = 512
_ROUNDS = 5


class ByLot(Greedy):
    """Accepts drafted tokens by lot.

    Args:
        agreement: the probability of each.
    """

    def __init__(self, agreement: float) -> None:
        super().__init__(tolerance=0.0)
        self.agreement, self.luck = agreement, random.Random(0)

    def settle(self, block: Tensor, logits: Tensor, decide: Decide) -> Chosen:
        given, best = torch.stack([block, logits.argmax(-1)]).tolist()
        chosen = []
        for drafted, own in zip(given, best, strict=True):
            count = 0
            while count + 1 < len(drafted) and self.luck.random() < self.agreement:
                count += 1
            chosen.append([*drafted[1 : count + 1], own[count]])
        return Chosen(chosen, 0)


class Contender:
    """One way to decode; what it lacks of `passes` is compiled and captured as it is made."""

    def __init__(self, name: str, passes: Passes, drafted: int, agreement: float) -> None:
        self.name, self.passes, self.drafted = name, passes, drafted
        self.choice = ByLot(agreement)
        self.told = Statistics(*(Reading.of(model) for model in passes.models.values()))
        self.seconds: list[float] = []
        began = time.perf_counter()
        self.run(2 + drafted, Statistics())
        print(f"{name}: passes made in {time.perf_counter() - began:.0f} s", flush=True)

    def run(self, tokens: int, told: Statistics) -> None:
        ids = torch.tensor([PROMPT], device="cuda")
        sequences = Sequences(ids, None, tokens, set(), ())
        pace = Pace((self.drafted,), self.drafted)
        decode(self.passes, sequences, self.choice, pace, told, _ignore)

    def turn(self, tokens: int) -> None:
        """Seconds of a token, the prompt's among them."""
        before = self.told.seconds
        self.run(tokens, self.told)
        self.seconds.append((self.told.seconds - before) / tokens)


def _ignore(taken: list[list[int]]) -> None:
    pass


def measure(
    tiers: list[str], layers: int, drafted: int, agreement: float, tokens: int
) -> dict[str, Any]:
    """bf16 alone, and each tier alone and with drafts, taking turns."""
    plain = random_llama(num_hidden_layers=layers)
    exact = compressed(plain, EXACT)
    made = [Contender(BF16, _passes(plain, plain), 0, agreement)]
    for tier in tiers:
        model = phiquant.view(exact, TIERS[tier])
        passes = _passes(model, phiquant.draft(model))
        made.append(Contender(tier, passes, 0, agreement))
        made.append(Contender(tier + DRAFTS, passes, drafted, agreement))
    for _ in range(_ROUNDS):
        for contender in made:
            contender.turn(tokens)
    return {
        "gpu": torch.cuda.get_device_name(),
        "agreement": agreement,
        "drafted": drafted,
        "rows": [row(contender) for contender in made],
        "passes_ms": {c.name: times(c) for c in made if not c.name.endswith(DRAFTS)},
    }


def _passes(model: nn.Module, draft: nn.Module) -> Passes:
    return Passes(model, draft, _PLACES, compile=True, captured=True)


def row(contender: Contender) -> dict[str, Any]:
    told = contender.told
    return {
        "what": contender.name,
        "tokens_per_s": 1 / statistics.median(contender.seconds),
        "acceptance": told.acceptance if told.drafted else None,
        "tokens_a_pass": told.tokens_per_pass,
        "planes_a_token": told.planes_per_token or None,
        "mb_a_token": told.bytes_per_token / 1e6,
    }


def times(contender: Contender) -> dict[str, float]:
    """Milliseconds of each pass, by replays of its graph alone."""
    found = {}
    for (name, width), run in contender.passes.ready.items():
        tokens = torch.zeros(1, width, dtype=torch.long, device="cuda")
        positions = torch.arange(20, 20 + width, device="cuda")[None]
        found[f"{name}, {width}"] = _milliseconds(lambda: run(tokens, positions))  # noqa: B023
    return found


def _milliseconds(call: Callable[[], object], count: int = 20) -> float:
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / count * 1e3


def report(rows: list[dict[str, Any]], title: str) -> str:
    speed = {row["what"]: row["tokens_per_s"] for row in rows}
    keys = ("acceptance", "tokens_a_pass", "planes_a_token", "mb_a_token")
    header = [
        title, "tokens/s", "x bf16", "x alone", "accepted", "tokens a pass", "planes a token",
        "MB a token",
    ]  # fmt: skip
    cells = (
        [
            row["what"],
            row["tokens_per_s"],
            row["tokens_per_s"] / speed[BF16],
            row["tokens_per_s"] / speed[row["what"].removesuffix(DRAFTS)],
            *(row[key] for key in keys),
        ]
        for row in rows
    )
    return table(header, cells)


def verdicts(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[Verdict]:
    """Bars hold for all layers and the agreement that they were set at."""
    speed = {row["what"]: row["tokens_per_s"] for row in rows}
    whole = options.layers == LLAMA_8B_LAYERS and options.agreement == _BARS_AT
    return [
        Verdict(
            f"{tier} with drafts against bf16, imposed agreement of {options.agreement:.0%}",
            BARS[tier],
            speed[tier + DRAFTS] / speed[BF16] if whole else None,
            "x",
        )
        for tier in options.tiers
    ]
