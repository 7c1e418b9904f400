"""What the benchmark of drafts says of its measurements; drafts that are accepted by lot."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks import agreement, speculation
from benchmarks.agreement import ByLot
from benchmarks.speculators import BF16, DRAFTS, Speculator, rows, take_turns
from phiquant.speculative import Statistics
from phiquant.speculative.pace import Pace
from phiquant.speculative.passes import Passes
from phiquant.speculative.rounds import decode
from phiquant.speculative.sequences import Sequences
from tests.speculative.support import llama, prompt


def test_contenders_take_turns_and_are_compared_prompt_by_prompt() -> None:
    model = llama()
    names = (BF16, "exact", "exact" + DRAFTS, "8.25 bits", "8.25 bits" + DRAFTS)
    made = [Speculator(name, model, 3 if DRAFTS in name else 0, False) for name in names]
    said: list[str] = []
    take_turns(made, [prompt(seed=1), prompt(seed=2)], 8, said.append)
    found = rows(made)
    assert said[-1] == "prompt 2 of 2"
    assert [row["identical"] for row in found] == [2] * 5
    assert [row["x_alone"] for row in found if DRAFTS not in row["what"]] == [1.0] * 3
    assert "exact, drafts" in speculation.report(found, "title")
    claims = [str(verdict) for verdict in speculation.verdicts(found)]
    assert "PASS  SmolLM2, exact: texts identical: 2.00 texts, bar 2" in claims


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_as_many_drafts_hold_as_the_lot_says(chance: float) -> None:
    model, told = llama(), Statistics()
    passes = Passes(model, model, 256, compile=False, captured=False)
    sequences = Sequences(prompt(), None, 200, set(), ())
    decode(passes, sequences, ByLot(chance), Pace((3,), 3), told, lambda taken: None)
    tried = told.accepted + sum(r.accepted < r.drafted for r in told.rounds)
    assert told.accepted / tried == pytest.approx(chance, abs=0.1)
    assert len(sequences.new[0]) == 200


def test_passes_that_verify_have_their_width() -> None:
    model = llama()
    assert agreement.passes_of(model, model).widths == ()
    assert agreement.passes_of(model, model, 8).widths == (8,)


def test_bars_hold_for_the_whole_model_only() -> None:
    speeds = (agreement.BF16, 100.0), ("exact", 60.0), ("exact, 2", 140.0), ("exact, 3", 120.0)
    found = [
        {"what": name, "alone": name.split(",")[0], "tokens_per_s": speed} for name, speed in speeds
    ]
    options = argparse.Namespace(layers=32, agreement=[0.85, 0.978], tiers=["exact"])
    claim = str(agreement.verdicts(found, options)[0])
    assert claim.startswith("PASS")
    assert "1.40 x" in claim
    options.layers = 4
    assert str(agreement.verdicts(found, options)[0]).startswith("----")


def test_what_passes_alone_allow() -> None:
    times = {
        f"{agreement.BF16}, alone": {"model, 1": 8.0},
        "8.25 bits, drafted by indices": {"draft, 1": 1.0, "model, 4": 4.0},
    }
    bounds = agreement.bounds(times, ["8.25 bits"], {"indices": 0.5})
    assert bounds == ["8.25 bits, drafted by indices: passes alone allow 2.40 x bf16, 1 drafted"]


def test_lots_repeat_themselves() -> None:
    block, logits = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, 8)
    draws = [ByLot(0.5).settle(block, logits, lambda columns: logits[0]) for _ in range(2)]
    assert draws[0] == draws[1]
