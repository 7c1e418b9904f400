"""Sizes of the exact tier are those of planes that decode to the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import exact, zoo
from benchmarks.lossless import NotLossless, packed_bytes
from phiquant import PhiTensor


@pytest.fixture
def weights() -> exact.Named:
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (48, 128), "value": (16, 600)}
    return {k: torch.randn(s, generator=generator).mul(0.02).bfloat16() for k, s in shapes.items()}


def test_measure(weights: exact.Named) -> None:
    found = exact.measure(weights, [])
    assert (found["matrices"], found["weights"]) == (2, 48 * 128 + 16 * 600)
    assert 10 < found["floor"] < 11
    for fit in exact.FITS:
        result = found[f"phiquant {fit}"]
        assert found["floor"] < result["bits"] < 12.5
        checksums = 2 * 16 * 8 / found["weights"]
        assert result["bits"] == pytest.approx(sum(result["planes"].values()) + checksums)
    assert found["phiquant exact"]["bits"] < found["phiquant joint"]["bits"]


def test_the_largest_matrix_is_named(weights: exact.Named) -> None:
    tensors = {name: exact.exact(weight) for name, weight in weights.items()}
    worst = exact.by_planes(tensors)["worst"]
    assert worst == {max(tensors, key=lambda n: tensors[n].bits_per_weight): max(worst.values())}


def test_a_weight_that_comes_back_changed_does_not_count(
    weights: exact.Named, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = PhiTensor.dequantize
    monkeypatch.setattr(PhiTensor, "dequantize", lambda self: decode(self) * 1.5)
    with pytest.raises(NotLossless, match=r"a weight of \(48, 128\) came back changed"):
        exact.exact(weights["query"])


def test_peers(weights: exact.Named) -> None:
    peers, missing = exact.installed_peers()
    assert set(peers) | set(missing) == {"zstd -19", "zipnn"}
    for peer in peers:
        total = sum(packed_bytes(peer, weight) for weight in weights.values())
        assert exact.measure(weights, [peer])[peer] == pytest.approx(8 * total / 15744)


def test_ideas_and_variants_bracket_what_is_stored(weights: exact.Named) -> None:
    ideas, variants = exact.ideas(weights), exact.variants(weights)
    for fit in exact.FITS:
        stored = variants[f"4+4 g64 {fit}"]
        assert ideas["bound: the sum of log2 of counts"][f"4+4 g64 {fit}"] < stored["bits"]
        # all but the checksum and the 8 bytes at the end
        rest = 2 * (16 + 8) * 8 / 15744
        whole = ideas["as stored: blocks of 512"][f"4+4 g64 {fit}"]
        assert whole + rest == pytest.approx(stored["bits"])
        assert 15 < stored["index"] < 25 < stored["deviation"] < 50
    assert variants["4+8 g64 joint"]["deviation"] > 60


def test_weights_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        @staticmethod
        def load() -> nn.Module:
            return nn.Sequential(*(nn.Linear(64, 32) for _ in range(20)), nn.Linear(16, 4))

    monkeypatch.setattr(zoo, "model", lambda name: Module)
    whole, quick = (exact.weights_of("minilm", quick) for quick in (False, True))
    assert len(whole) == 20
    assert [tuple(weight.shape) for weight in quick.values()] == [(16, 64)] * 4
    assert all(weight.dtype == torch.bfloat16 for weight in whole.values())
    assert list(exact.weights_of("smollm2", False)) == ["0.weight", "8.weight", "16.weight"]


def test_verdicts() -> None:
    def result(joint: float, least: float) -> dict:
        return {"floor": 10.7, "phiquant joint": {"bits": joint}, "phiquant exact": {"bits": least}}

    models = {"minilm": result(11.4, 11.3), "whisper": result(11.5, 11.4)}
    models["crepe"] = result(12.3, 12.1)
    checks = exact.verdicts(models, {"a": {"bits": 11.3}, "b": {"bits": 11.1}})
    words = [str(check).split()[0] for check in checks]
    assert words == ["PASS", "PASS", "----", "----", "MISS", "PASS", "MISS", "PASS", "PASS"]
    assert str(exact.verdicts({}, {})[-1]).startswith("----")


def test_report(weights: exact.Named, capsys: pytest.CaptureFixture[str]) -> None:
    output = {"ideas": exact.ideas(weights), "variants": exact.variants(weights)}
    exact.report({"minilm": exact.measure(weights, [])}, [], output)
    printed = capsys.readouterr().out
    for row in ("minilm", "minilm joint", "minilm exact", "blocks of 256", "4+8 g64 joint"):
        assert f"\n| {row} " in printed
    assert "DFloat11 published |" in printed
