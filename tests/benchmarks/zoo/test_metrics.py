"""Comparisons of logits, by hand."""

import math

import pytest
import torch
from torch import nn

from benchmarks.zoo import metrics


def test_kl_divergence() -> None:
    reference = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    other = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log() + 3  # a constant changes nothing
    expected = 0.5 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert metrics.kl_divergence(reference, other) == pytest.approx(expected)
    assert metrics.kl_divergence(reference, reference) == 0


def test_kl_divergence_sees_differences_of_a_millionth() -> None:
    reference = torch.zeros(1, 2)
    moved = torch.tensor([[1e-3, -1e-3]])
    assert metrics.kl_divergence(reference, moved) == pytest.approx(0.5e-6, rel=1e-3)


def test_perplexity_and_agreement() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    targets = torch.tensor([1, 1])
    loss = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2
    assert metrics.negative_log_likelihood(logits, targets) == pytest.approx(loss)
    assert metrics.perplexity(loss) == pytest.approx(math.exp(loss))
    assert metrics.perplexity(1e6) == math.inf
    assert metrics.agreement(logits, logits.flip(1)) == 0
    assert metrics.agreement(logits, torch.tensor([[0.0, 5.0], [0.0, 1.0]])) == 0.5


def test_placement() -> None:
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.bfloat16))
    assert metrics.placement(model) == (torch.device("cpu"), torch.bfloat16)
    with pytest.raises(ValueError, match="no floating-point parameter"):
        metrics.placement(nn.ReLU())
