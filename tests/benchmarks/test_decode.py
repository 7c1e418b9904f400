"""The benchmark of decoding on a tiny model: every decoder is checked before it is timed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import decode, llama_cpp_api, llama_file
from benchmarks.decoders import (
    ALL_INDEX,
    INDEX,
    INT8_ACTIVATION,
    PHIQUANT,
    PLAIN,
    Transformers,
    random_llama,
    read_bytes,
    transformers_decoders,
)
from benchmarks.llama_cpp_decoder import llama_cpp_decoders
from benchmarks.llama_cpp_worker import Worker
from benchmarks.unavailable import Unavailable

TINY: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llama(**TINY)


def quiet(text: str) -> None:
    pass


def test_all_of_transformers(model: Any) -> None:
    rows = decode.measure(transformers_decoders(model), 1, 2, 1.0, quiet)
    found = {row["what"]: row for row in rows}
    assert set(found) == {PLAIN, ALL_INDEX, INT8_ACTIVATION, *PHIQUANT}
    assert found[PLAIN]["logits_error"] == 0
    assert found["phiquant exact"]["logits_error"] < 0.01
    assert 0.001 < found["phiquant index+4"]["logits_error"] < 0.1
    linear = 2 * (128 * 128 * 2 + 64 * 128 * 2 + 256 * 128 * 3)
    assert found[PLAIN]["read_mb"] == 2 * (linear + 8192 * 128) / 1e6
    bits = found["phiquant index+4"]["read_mb"] * 8e6 / (linear + 8192 * 128)
    assert bits == pytest.approx(8.25, abs=0.01)
    assert "logits error" in decode.report("tiny", rows)


def test_a_step_continues_the_sequence(model: Any) -> None:
    decoder = Transformers(PLAIN, model, 0.0)
    decoder.step([5, 6, 7])
    after = decoder.step([8])
    decoder.restart()
    assert torch.allclose(decoder.step([5, 6, 7, 8]), after, atol=0.02)
    decoder.restart()
    assert not torch.allclose(decoder.step([8]), after, atol=0.02)


class Wrong(Transformers):
    """Leaves the prompt out of its cache."""

    def step(self, tokens: list[int]) -> Tensor:
        self.restart()
        return super().step(tokens)


def test_a_wrong_decoder_is_caught(model: Any) -> None:
    decoders = [Transformers(PLAIN, model, 0.0), Wrong("wrong", model, 0.1)]
    with pytest.raises(AssertionError, match="wrong: logits are off"):
        decode.measure(decoders, 1, 2, 1.0, quiet)


def test_a_turn_ends(model: Any) -> None:
    decoder = Transformers(PLAIN, model, 0.0)
    assert len(decoder.turn(5, 60.0)) == 5
    assert len(decoder.turn(5, 0.0)) == 2


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_what_is_closed_leaves_no_compiled_code(
    model: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch compiles one forward so many times, and two models have more variants."""
    resets: list[None] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(None))
    Transformers(PLAIN, model, 0.0, compiled).close()
    assert len(resets) == compiled


def test_verdicts() -> None:
    rows = [
        {"what": what, "tokens_per_s": speed}
        for what, speed in ((PLAIN, 2.0), (INDEX, 9.0), (INT8_ACTIVATION, 9.5), (decode.Q4_0, 10.0))
    ]
    words = {verdict.claim: str(verdict)[:4] for verdict in decode.verdicts(rows)}
    assert len(words) == len(decode.BARS)
    assert words[f"{INDEX} against {PLAIN}, {decode.LARGE}"] == "PASS"
    assert words[f"{INDEX}, compiled against {PLAIN}, {decode.LARGE}"] == "----"
    assert words[f"{INT8_ACTIVATION} against {decode.Q4_0}, {decode.LARGE}"] == "MISS"
    assert "MISS" not in {str(verdict)[:4] for verdict in decode.verdicts(rows[:3])}


def test_interleaving_is_undone_as_the_zoo_does_it() -> None:
    weight = torch.arange(2 * 6 * 3).reshape(12, 3)
    pairs = llama_file.interleaved(weight, 6)
    assert pairs[:6, 0].tolist() == [0, 9, 3, 12, 6, 15]
    assert torch.equal(pairs.reshape(-1, 3, 2, 3).transpose(1, 2).reshape(12, 3), weight)


def test_missing_llama_cpp_is_told(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise Unavailable("llama.cpp: pip install it")

    monkeypatch.setattr(llama_cpp_api, "library", absent)
    options = argparse.Namespace(compile=False, threads=1, rounds=1, tokens=2, seconds=1.0)
    rows, missing = decode.run(model, options)
    assert missing == ["llama.cpp: pip install it"]
    assert len(rows) == 3 + len(PHIQUANT)


def test_llama_cpp_that_crashes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "Q4_0.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(Unavailable, match=r"llama\.cpp Q4_0: its process ended with"):
        Worker(path, 1)


def test_llama_cpp_has_the_same_logits(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    missing: list[str] = []
    plain = Transformers(PLAIN, model, 0.0)
    wanted = plain.logits()
    for decoder in llama_cpp_decoders(model, tmp_path, 1, missing):
        assert decode.check(decoder, wanted) <= decoder.tolerance
        assert decoder.read_bytes < 1.05 * plain.read_bytes
        assert len(decoder.turn(3, 60.0)) == 3
        decoder.close()
    assert not any("BF16" in reason for reason in missing)


def test_file_holds_the_same_weights(model: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    llama_file.write(model, tmp_path / "tiny.gguf")
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert len(stored) == len(dict(model.named_parameters()))
    raw = torch.from_numpy(stored["blk.1.ffn_down.weight"].data.copy())
    wanted = model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(raw.view(torch.bfloat16).reshape(wanted.shape), wanted)
    size = sum(int(t.n_bytes) for t in stored.values() if len(t.shape) == 2)
    assert size == read_bytes(model)
