"""The benchmark of encoding on a GPU: planes are compared before anything is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cuda_encode
from tests.cuda.support import ON_A_GPU

pytestmark = ON_A_GPU


def test_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["cuda_encode", "--shape", "512x256", "--json", str(path)])
    cuda_encode.main()
    found = json.loads(path.read_text())["encode"]
    assert [row["what"] for row in found[-2:]] == ["quantize_, 8.25 bits", "quantize_, exact"]
    assert all(row["g_per_s"] > 0 for row in found)


def test_nothing_is_timed_if_a_plane_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(4, 128, device="cuda")
    layout = cuda_encode.layouts(128)["index+4"]
    cuda_encode.check("a layout", weight, layout)
    planes = cuda_encode.phi.encode(weight, None, *cuda_encode.settings(layout), "joint")

    class Wrong:
        @staticmethod
        def encode(of: torch.Tensor, *given: object) -> list[torch.Tensor]:
            return [plane.to(of.device) + of.is_cuda for plane in planes]

    monkeypatch.setattr(cuda_encode, "phi", Wrong)
    with pytest.raises(AssertionError, match="a layout"):
        cuda_encode.check("a layout", weight, layout)
