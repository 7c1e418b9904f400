"""The benchmark of products of one x: that both ways are compared, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import cuda_joined
from benchmarks.cuda_joined import Joint, Ways
from tests.cuda.support import ON_A_GPU


def test_nothing_is_timed_if_the_ways_differ() -> None:
    x = torch.randn(2, 8)

    def product(x: Tensor) -> list[Tensor]:
        return [x, x * 2]

    cuda_joined.check(Ways(product, product), x)
    with pytest.raises(AssertionError):
        cuda_joined.check(Ways(product, lambda x: [x, x * 2.1]), x)
    with pytest.raises(ValueError, match="shorter"):
        cuda_joined.check(Ways(product, lambda x: [x]), x)


@pytest.mark.cuda
@ON_A_GPU[1]
def test_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["cuda_joined", "--json", str(path)])
    monkeypatch.setattr(cuda_joined, "JOINTS", (Joint("small", 128, (64, 32)),))
    monkeypatch.setattr(cuda_joined, "_ROTATED_BYTES", 1)
    cuda_joined.main()
    found = json.loads(path.read_text())["products"]
    assert [row["rows"] for row in found] == [*cuda_joined.ROWS] * 3
    assert all(row["apart"] > 0 and row["together"] > 0 for row in found)
