"""Matrices are found once, come back after a measurement, and errors are in decibels."""

import math

import pytest
import torch
from torch import nn

from benchmarks.matrices import matrices, replaced, sqnr


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 64)
        self.linear = nn.Linear(64, 96)
        self.narrow = nn.Linear(63, 8)
        self.pointwise = nn.Conv2d(128, 4, 1)
        self.kernel = nn.Conv1d(32, 4, 3)
        self.depthwise = nn.Conv2d(64, 64, 8, groups=64)
        self.again = nn.Linear(64, 96)
        self.head = nn.Linear(64, 10)
        self.again.weight = self.linear.weight
        self.head.weight = self.embed.weight


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["linear", "pointwise"]),
        ({"convolutions": True}, ["linear", "pointwise", "kernel"]),
        ({"embeddings": True}, ["embed", "linear", "pointwise"]),
        ({"columns": 63}, ["linear", "narrow", "pointwise"]),
    ],
)
def test_which_weights(options: dict, expected: list[str]) -> None:
    found = matrices(Model(), **options)
    assert [matrix.name for matrix in found] == [f"{name}.weight" for name in expected]
    assert [matrix.wide for matrix in found] == [name == "embed" for name in expected]
    assert all(matrix.weight.dim() == 2 for matrix in found)


def test_replaced_puts_the_originals_back() -> None:
    model = Model()
    found = matrices(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(2, 64)
    zeros = {matrix.name: torch.zeros_like(matrix.weight) for matrix in found}
    with pytest.raises(RuntimeError, match="stop"), replaced(found, zeros):  # noqa: PT012
        assert torch.equal(model.again(x), model.linear.bias.new_zeros(2, 96) + model.again.bias)
        assert not model.pointwise.weight.any()
        raise RuntimeError("stop")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_sqnr() -> None:
    weight = torch.ones(4, 4)
    assert sqnr(weight, weight * 0.9) == pytest.approx(20, abs=1e-5)
    assert sqnr(weight, weight) == math.inf
