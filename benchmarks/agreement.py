"""A model of random weights whose drafts are accepted by lot, on a GPU.

The model of agreement: each drafted token is accepted with one probability, that of what drafts it,
whatever came before, as drawn by the host; after the first that is not, the verifying model's own
token follows. All passes are run as they would be: drafts one by one, one verification, one wait
for what came out; every pass compiled and put into a CUDA graph. Near ties are not looked at, since
random weights have nothing else. A tier alone makes passes of one token; where it verifies, they
have the width that `phiquant.generate` gives them, whatever is drafted, so that some numbers of
drafts are tried.
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

BF16 = "bf16 alone"
TIERS = {"exact": "exact", "8.25 bits": "deviation"}
DRAFTS = {"indices": "index", "8.25 bits": "deviation"}
WIDTHS = {"exact": 8, "8.25 bits": 4}  # of passes that verify
DRAFTED: dict[str, dict[str, tuple[int, ...]]] = {  # how many tokens, by what drafts them
    "exact": {"indices": (4, 5), "8.25 bits": (6, 7)},
    "8.25 bits": {"indices": (2, 3)},
}
BARS = {"exact": 1.35, "8.25 bits": 1.6}  # times as fast as bf16
_BARS_AT = [0.85, 0.978]  # SmolLM2's: benchmarks.draft_agreement
_PLACES = 512
_ROUNDS = 3


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

    def __init__(
        self,
        name: str,
        passes: Passes,
        agreement: float = 0.0,
        tier: str = "",
        by: str = "",
        drafted: int = 0,
    ) -> None:
        self.name, self.passes, self.by, self.drafted = name, passes, by, drafted
        self.alone = tier or name
        self.choice = ByLot(agreement)
        self.told = Statistics(*(Reading.of(model) for model in passes.models.values()))
        self.seconds: list[float] = []
        began = time.perf_counter()
        self.run(2 + drafted, Statistics())
        tell(f"{name}: passes made in {time.perf_counter() - began:.1f} s")

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
    tiers: list[str], layers: int, drafted: int | None, agreement: dict[str, float], tokens: int
) -> dict[str, Any]:
    """bf16 alone, and each tier alone and with drafts, taking turns.

    Args:
        tiers: of TIERS.
        layers: of the model.
        drafted: how many tokens at once; None: those of DRAFTED.
        agreement: by what drafts.
        tokens: of each text.
    """
    plain = random_llama(num_hidden_layers=layers)
    tell("compressing")
    exact = compressed(plain, EXACT)
    tell("compressed")
    made = [Contender(BF16, passes_of(plain, plain))]
    for tier in tiers:
        model = phiquant.view(exact, TIERS[tier])
        made.append(Contender(tier, passes_of(model, model)))
        for by, counts in DRAFTED[tier].items():
            draft = phiquant.draft(model, tier=DRAFTS[by])
            passes = passes_of(model, draft, WIDTHS[tier])
            for count in counts if drafted is None else (drafted,):
                name = f"{tier}, {count} drafted by {by}"
                made.append(Contender(name, passes, agreement[by], tier, by, count))
    for number in range(_ROUNDS):
        tell(f"round {number + 1} of {_ROUNDS}")
        for contender in made:
            contender.turn(tokens)
    found = {(c.alone, c.by): times(c) for c in made}
    return {
        "gpu": torch.cuda.get_device_name(),
        "agreement": agreement,
        "rows": [row(contender) for contender in made],
        "passes_ms": {_pair(*key): times for key, times in found.items()},
    }


def _pair(tier: str, by: str) -> str:
    return f"{tier}, drafted by {by}" if by else f"{tier}, alone"


def passes_of(model: nn.Module, draft: nn.Module, width: int | None = None) -> Passes:
    return Passes(model, draft, _PLACES, True, True, () if width is None else (width,))


def tell(what: str) -> None:
    print(time.strftime("%H:%M:%S"), what, flush=True)


def row(contender: Contender) -> dict[str, Any]:
    told = contender.told
    return {
        "what": contender.name,
        "alone": contender.alone,
        "tokens_per_s": 1 / statistics.median(contender.seconds),
        "acceptance": told.acceptance if told.drafted else None,
        "tokens_a_pass": told.tokens_per_pass,
        "planes_a_token": told.planes_per_token or None,
        "mb_a_token": told.bytes_per_token / 1e6,
    }


@torch.inference_mode()
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
            row["tokens_per_s"] / speed[row["alone"]],
            *(row[key] for key in keys),
        ]
        for row in rows
    )
    return table(header, cells)


def expected(tokens: int, agreement: float) -> float:
    """How many tokens a round of so many drafted ones puts out."""
    return sum(agreement**number for number in range(tokens + 1))


def bounds(
    passes_ms: dict[str, dict[str, float]], tiers: list[str], agreement: dict[str, float]
) -> list[str]:
    """What passes alone, without a host between them, would allow: the best number of drafts."""
    plain = passes_ms[_pair(BF16, "")]["model, 1"]
    lines = []
    for tier, by in [(each, by) for each in tiers for by in DRAFTED[each]]:
        ms, width = passes_ms[_pair(tier, by)], WIDTHS[tier]
        each = {
            count: expected(count, agreement[by]) / (count * ms["draft, 1"] + ms[f"model, {width}"])
            for count in range(1, width)
        }
        best = max(each, key=each.__getitem__)
        lines.append(
            f"{_pair(tier, by)}: passes alone allow {plain * each[best]:.2f} x bf16, {best} drafted"
        )
    return lines


def verdicts(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[Verdict]:
    """Of the best number of drafts; bars hold for all layers and the agreement they were set at."""
    plain = next(row["tokens_per_s"] for row in rows if row["what"] == BF16)
    whole = options.layers == LLAMA_8B_LAYERS and options.agreement == _BARS_AT
    made = []
    for tier in options.tiers:
        best = max(
            (r for r in rows if r["alone"] == tier and r["what"] != tier),
            key=lambda row: row["tokens_per_s"],
        )
        gain = best["tokens_per_s"] / plain if whole else None
        made.append(Verdict(f"{best['what']}, against bf16", BARS[tier], gain, "x"))
    return made
