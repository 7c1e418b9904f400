"""The benchmark on a model made here: what it measures, and when a bar counts as met."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import generation, quality, zoo
from benchmarks.methods import peer, phi
from benchmarks.zoo.packages import MissingPackage


@pytest.fixture(autouse=True)
def small_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 8))

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"distance": (model[0].weight - load()[0].weight).square().mean().item()}

    module = SimpleNamespace(load=load, evaluate=evaluate)
    monkeypatch.setattr(zoo, "model", lambda name: module)


def test_measure() -> None:
    chosen = [peer("int8 g64"), phi("phi 4+4", (0, 4))]
    results = quality.measure("minilm", chosen, "headline", None)
    assert list(results) == ["original", "int8 g64", "phi 4+4: index", "phi 4+4: +4"]
    assert results["original"]["metrics"] == {"distance": 0}
    index, deviation = results["phi 4+4: index"], results["phi 4+4: +4"]
    assert 0 < deviation["metrics"]["distance"] < index["metrics"]["distance"] / 50
    layers = index["sqnr_db_layers"]
    assert list(layers) == ["0.weight", "1.weight"]
    assert index["sqnr_db"] == pytest.approx(sum(layers.values()) / 2, abs=1e-3)
    weighted = (layers["0.weight"] * 128 * 64 + layers["1.weight"] * 64 * 8) / (128 * 64 + 64 * 8)
    assert index["sqnr_db_weighted"] == pytest.approx(weighted, abs=1e-3)
    assert index["bits"] == pytest.approx(4.25)


def test_metrics_and_matrices_can_be_limited() -> None:
    quiet = peer("int4 symmetric g64")
    assert not quiet.headline
    assert "metrics" not in quality.measure("minilm", [quiet], "headline", None)[quiet.name]
    assert "metrics" in quality.measure("minilm", [quiet], "all", None)[quiet.name]
    few = quality.measure("minilm", [quiet], "none", 1)
    assert list(few) == [quiet.name]
    assert list(few[quiet.name]["sqnr_db_layers"]) == ["0.weight"]


def test_verdicts_are_means_over_the_judged_models() -> None:
    def result(lead: float) -> quality.Results:
        values = {"NF4 absmax g64": 20.0, "int8 g64": 44.0}
        for _, ours, theirs, _ in quality._BARS:
            values[ours] = values[theirs] + lead
        return {key: {"sqnr_db": value} for key, value in values.items()}

    leads = dict(zip(quality.JUDGED, (0.6, 1.0, 1.0, 1.6), strict=True))
    results = {name: result(lead) for name, lead in leads.items()} | {"crepe": result(-5)}
    found = [str(verdict)[:4] for verdict in quality.verdicts(results)]
    assert found == ["PASS"] * 5 + ["MISS"]  # 1.05 dB against 0.9 four times, 1.0 and 1.1
    del results["whisper"]["int8 g64"]
    assert [str(verdict)[:4] for verdict in quality.verdicts(results)] == [
        "PASS",
        "----",
        "PASS",
        "----",
        "PASS",
        "----",
    ]
    results.pop("whisper")
    assert {str(verdict)[:4] for verdict in quality.verdicts(results)} == {"----"}


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    arguments = ["--models", "minilm", "--methods", "NF4 absmax", "phi 4+4", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["quality.py", *arguments])
    quality.main()
    printed = capsys.readouterr().out
    assert "| NF4 absmax g64 " in printed
    assert "not measured in this run" in printed
    stored = json.loads(path.read_text())
    assert stored["models"]["minilm"]["phi 4+4: +4"]["metrics"]["distance"] > 0
    assert stored["command"].startswith("python -m benchmarks.quality --models minilm --methods")
    assert len(stored["verdicts"]) == 6


def test_a_missing_model_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load() -> nn.Module:
        raise MissingPackage("get it with `pip install it`")

    monkeypatch.setattr(zoo, "model", lambda name: SimpleNamespace(load=load))
    monkeypatch.setattr(sys, "argv", ["quality.py", "--quick", "--models", "minilm", "whisper"])
    quality.main()
    printed = capsys.readouterr().out
    assert "minilm is left out: get it with `pip install it`" in printed
    assert "no model is installed" in printed
    assert printed.count("not measured in this run") == 6


def test_generation_verdict_and_table() -> None:
    def tier(bits: float, identical: int) -> dict[str, float]:
        return {"bits": bits, "identical": identical, "of": 20, "tokens_before_change": 60.0}

    results = {"phi 5+8: +8": tier(13.25, 19), "phi 4+4: index": tier(4.5, 2)}
    assert str(generation.verdicts(results)[0]).startswith("PASS")
    assert generation.summary(results).splitlines()[2].startswith("| phi 4+4: index ")
    results["phi 5+8: +8"]["identical"] = 18
    assert str(generation.verdicts(results)[0]).startswith("MISS")
    assert len(set(generation.PROMPTS)) == 20
