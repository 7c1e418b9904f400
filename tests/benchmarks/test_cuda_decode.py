"""The benchmark of whole models on a GPU: what it reports, and all of it on a tiny model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cuda_decode, cuda_decoder
from benchmarks.cuda_decoder import PLAIN, TIERS, Decoder
from phiquant import ops
from tests.cuda.support import ON_A_GPU

TINY: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def row(what: str, graph: str, speed: float) -> dict[str, Any]:
    keys = ("ms", "host_ms", "kernels_ms", "products_ms", "read_mb", "tb_per_s")
    more = {"graph_launches": 1.0, "logits_error": 0.0, "kernels": [("product", 1.0, 2.0)]}
    return {"what": what, "graph": graph, "tokens_per_s": speed, **dict.fromkeys(keys, 1.0), **more}


ROWS = [
    row(PLAIN, "the step's", 100.0),
    row(PLAIN, "torch's", 80.0),
    row("phiquant index", "the step's", 270.0),
    row("phiquant index", "torch's", 120.0),
]


def test_models_are_compared_with_bf16_in_graphs_of_the_same_kind() -> None:
    ratios = [line.split("|")[3].strip() for line in cuda_decode.report(ROWS).splitlines()[2:]]
    assert ratios == ["1", "1", "2.70", "1.5"]
    assert "product" in cuda_decode.report_kernels(ROWS[0])


def test_verdicts_are_of_the_whole_model_alone() -> None:
    index, deeper = cuda_decode.verdicts(ROWS, whole=True)
    assert index.measured == pytest.approx(2.7)
    assert str(index).startswith("PASS")
    assert deeper.measured is None
    assert all(verdict.measured is None for verdict in cuda_decode.verdicts(ROWS, whole=False))


def test_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["cuda_decode"])
    with pytest.raises(SystemExit):
        cuda_decode.main()


class TestOnAGpu:
    pytestmark = [*ON_A_GPU, pytest.mark.slow]

    def test_main(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(cuda_decoder, "LLAMA_8B", cuda_decoder.LLAMA_8B | TINY)
        path = tmp_path / "results.json"
        given = ["--layers", "2", "--tokens", "4", "--torch-graphs", "--kernels", "--tiers", *TIERS]
        monkeypatch.setattr(sys, "argv", ["cuda_decode", *given, "--json", str(path)])
        cuda_decode.main()
        found = json.loads(path.read_text())["decode"]
        assert [each["what"] for each in found[::2]] == [PLAIN, *TIERS]
        assert all(each["graph_launches"] == 1 for each in found)
        assert "not measured in this run" in capsys.readouterr().out

    def test_nothing_is_timed_if_logits_are_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda_decoder, "LLAMA_8B", cuda_decoder.LLAMA_8B | TINY)
        model = cuda_decoder.random_llama(num_hidden_layers=1)
        decoder = Decoder("a model", model, 64, captured=True)
        wanted = decoder.logits(eager=True)
        assert decoder.check(wanted) < 0.05
        with pytest.raises(AssertionError, match="a model: logits are off"):
            decoder.check(wanted.flip(-1))
        with pytest.raises(ValueError, match="60 do not fit into a cache of 64"):
            decoder.time(60)


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ops, "compiled_cuda", True)
    monkeypatch.setattr(sys, "argv", ["cuda_decode", "--tiers", "phiquant exact"])
    options: argparse.Namespace = cuda_decode.arguments()
    assert options.tiers == ["phiquant exact"]
    assert options.layers == cuda_decoder.LLAMA_8B_LAYERS
