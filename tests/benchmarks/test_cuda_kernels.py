"""The benchmark of products on a GPU: all of it on a small shape, and what it is asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cuda_kernels
from benchmarks.cuda_contenders import BUILDERS, CUBLAS
from phiquant import ops
from tests.cuda.support import ON_A_GPU


def options(monkeypatch: pytest.MonkeyPatch, *given: str) -> list[str]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ops, "compiled_cuda", True)
    monkeypatch.setattr(sys, "argv", ["cuda_kernels", *given])
    return cuda_kernels.arguments().only


def test_contenders_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options(monkeypatch) == list(BUILDERS)
    assert options(monkeypatch, "--only", "humming", "phiquant") == ["humming", "phiquant"]
    with pytest.raises(SystemExit):
        options(monkeypatch, "--only", "nobody")


def test_without_a_gpu_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["cuda_kernels"])
    with pytest.raises(SystemExit):
        cuda_kernels.arguments()
    assert "needs a GPU and phiquant's kernels for it" in capsys.readouterr().err


class TestOnAGpu:
    pytestmark = ON_A_GPU

    def test_main(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        given = ["--shapes", "512x1024", "--rows", "1", "16", "--only", "tinygemm", "phiquant"]
        monkeypatch.setattr(sys, "argv", ["cuda_kernels", *given, "--json", str(path)])
        cuda_kernels.main()
        found = json.loads(path.read_text())
        names = list(dict.fromkeys(each["what"] for each in found["linear"]))
        assert names[:2] == [CUBLAS, "torch int4pack g64"]
        assert len(names) == 7
        assert all(each["us"] > 0 for each in found["linear"] + found["decode"])
        assert [each["rows"] for each in found["linear"]] == [1] * 7 + [16] * 7
        assert all(each["lowest_sm_mhz"] <= each["sm_mhz"] for each in found["linear"])
