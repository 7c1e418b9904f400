"""Comparisons of logits and helpers that every evaluation shares."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating dtype in which `model` takes its inputs."""
    for parameter in model.parameters():
        if parameter.dtype.is_floating_point:
            return parameter.device, parameter.dtype
    raise ValueError("the model has no floating-point parameter")


def kl_divergence(reference: Tensor, logits: Tensor) -> float:
    """Mean KL(reference || logits) in nats over all rows; both are logits [..., classes].

    Computed in fp64: the deepest tiers are within 1e-6 of the original, where fp32 is noise.
    """
    p = torch.log_softmax(reference.double(), -1)
    q = torch.log_softmax(logits.double(), -1)
    return ((p.exp() * (p - q)).sum(-1)).mean().item()


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> float:
    """Mean NLL in nats; logits [n, classes], integer targets [n]."""
    return nn.functional.cross_entropy(logits.float(), targets).item()


def perplexity(nll: float) -> float:
    """exp of a mean NLL, infinite instead of an overflow."""
    return math.exp(nll) if nll < 700 else math.inf


def agreement(reference: Tensor, logits: Tensor) -> float:
    """Share of rows whose largest logit is the same class."""
    return (reference.argmax(-1) == logits.argmax(-1)).float().mean().item()
