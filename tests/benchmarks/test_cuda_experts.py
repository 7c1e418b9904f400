"""The benchmark of experts on a GPU: what it counts, and that products are compared first."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import cuda_experts
from benchmarks.cuda_experts import Grouped, Mixture
from tests.cuda.support import ON_A_GPU

SMALL = Mixture("small", experts=5, outputs=16, inputs=64, taken=2)


def test_every_token_takes_different_experts() -> None:
    for tokens in (1, 3):
        ends = cuda_experts.chosen(SMALL, tokens)
        counts = ends.diff(prepend=ends.new_zeros(1))
        assert counts.sum() == tokens * SMALL.taken
        assert counts.max() <= tokens
        assert cuda_experts.used(ends) == (counts > 0).sum()


def test_nothing_is_timed_if_a_row_is_wrong() -> None:
    weight, ends = torch.randn(5, 16, 64), torch.tensor([0, 1, 1, 3, 3])
    x = torch.randn(3, 64)

    def product(x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:1] @ weight[1].t(), x[1:] @ weight[3].t()])

    right = Grouped("a contender", product, weight, 0)
    cuda_experts.check(right, x, ends)
    with pytest.raises(AssertionError, match="a contender"):
        cuda_experts.check(replace(right, weight=weight.flip(0) + 1), x, ends)


@pytest.mark.cuda
@ON_A_GPU[1]
def test_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["cuda_experts", "--json", str(path)])
    monkeypatch.setattr(cuda_experts, "MIXTURES", (SMALL,))
    cuda_experts.main()
    found = json.loads(path.read_text())["experts"]
    assert {row["what"] for row in found} == {"torch bf16", "phiquant index", "phiquant index+4"}
    assert all(row["us"] > 0 for row in found)
    monkeypatch.setattr(sys, "argv", ["cuda_experts", "--json", str(path), "--rows", "6"])
    cuda_experts.main()
    found = json.loads(path.read_text())["experts"]
    assert {row["tokens"] for row in found} == {15}
    assert "phiquant index+4, decoded first" in {row["what"] for row in found}
