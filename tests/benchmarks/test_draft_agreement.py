"""How often drafts hold: what is counted, and what follows from it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks import draft_agreement
from benchmarks.agreement import DRAFTS
from benchmarks.draft_agreement import agreement, measure, scaled
from phiquant.speculative.statistics import Round
from tests.speculative.support import llama, prompt


def test_what_was_tried_ends_with_the_first_that_failed() -> None:
    def round_of(drafted: int, accepted: int) -> Round:
        return Round(drafted, accepted, accepted + 1, drafted, 0)

    assert agreement([round_of(4, 4), round_of(4, 1), round_of(4, 0), round_of(0, 0)]) == (5, 7)


def test_failures_keep_their_ratio() -> None:
    assert scaled(0.8, 0.98, given=0.9) == pytest.approx(0.99)
    assert scaled(0.85, 0.97, given=0.85) == pytest.approx(0.97)
    assert math.isnan(scaled(1.0, 1.0))


def test_a_draft_that_is_the_model_always_holds() -> None:
    model = llama()
    found = measure(model, model, 3, [prompt(), prompt(seed=2)], 9)
    assert found["agreement"] == 1
    assert found["error"] == 0
    assert found["tokens_a_pass"] == 4


def test_main(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prompts(count: int) -> list[Tensor]:
        return [prompt(seed=number) for number in range(count)]

    path = tmp_path / "results.json"
    arguments = ["--json", str(path), "--prompts", "1", "--tokens", "12", "--drafted", "2", "3"]
    monkeypatch.setattr(sys, "argv", ["draft_agreement", *arguments])
    monkeypatch.setattr(draft_agreement, "exact_model", llama)
    monkeypatch.setattr(draft_agreement, "prompts", prompts)
    draft_agreement.main()
    rows = json.loads(path.read_text())["rows"]
    assert [(row["draft"], row["drafted"]) for row in rows] == [
        (by, drafted) for by in DRAFTS for drafted in (2, 3)
    ]
    assert all(0 <= row["held"] <= row["tried"] for row in rows)
    assert "the same ratio of failures" in capsys.readouterr().out
