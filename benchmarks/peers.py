"""Formats that people use today, as functions from a weight to what they make of it.

Each takes a floating-point matrix [rows, columns] and returns the decoded fp32 matrix with its
bits a weight, scales and padding included. Groups run along the columns, a short last group is
padded, and scales are rounded to fp16, which makes NF4 at group size 64 4.25 bits. (bitsandbytes
keeps fp32 scales, 4.5 bits, or quantizes them again, 4.127 bits at a little more error.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_SCALE_BITS = 16
_NF4_OFFSET = 0.9677083  # QLoRA's outermost quantile, a mean of 1 - 1/32 and 1 - 1/30
_SEARCH = torch.linspace(0.65, 1.05, 33).tolist()  # scales tried, in units of the absmax
_BISECTIONS = 22


class Decoded(NamedTuple):
    """A matrix after compression, fp32 [rows, columns], and its bits a weight."""

    weight: Tensor
    bits: float


Peer = Callable[[Tensor], Decoded]


@functools.cache
def nf4_levels() -> Tensor:
    """QLoRA's NormalFloat4: quantiles of the normal distribution, 7 below zero and 8 above."""
    above = torch.special.ndtri(torch.linspace(_NF4_OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(_NF4_OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return (levels / levels.max()).float()


def nf4(weight: Tensor, group_size: int = 64) -> Decoded:
    """NF4 with the largest magnitude of a group as its scale."""
    groups = _groups(weight, group_size)
    scale = _fp16(groups.abs().amax(-1, keepdim=True))
    return _ungroup(_nf4_round(groups, scale), weight, 4)


def nf4_searched(weight: Tensor, group_size: int = 64) -> Decoded:
    """NF4 with the scale of least squared error among 33 from 0.65 to 1.05 of the absmax."""
    groups = _groups(weight, group_size)
    absmax = groups.abs().amax(-1, keepdim=True)
    best = torch.zeros_like(groups)
    least = torch.full_like(absmax, torch.inf)
    for factor in _SEARCH:
        candidate = _nf4_round(groups, _fp16(absmax * factor))
        error = (candidate - groups).square().sum(-1, keepdim=True)
        best = torch.where(error < least, candidate, best)
        least = torch.minimum(error, least)
    return _ungroup(best, weight, 4)


def _nf4_round(groups: Tensor, scale: Tensor) -> Tensor:
    levels = nf4_levels().to(groups.device)
    midpoints = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(groups / scale, midpoints)] * scale


def symmetric(weight: Tensor, bits: int, group_size: int = 64) -> Decoded:
    """Round to nearest on 2^bits - 1 levels around zero, from -absmax to absmax."""
    groups = _groups(weight, group_size)
    return _ungroup(_symmetric_round(groups, bits), weight, bits)


def signed(weight: Tensor, bits: int, group_size: int = 64) -> Decoded:
    """Round to nearest on 2^bits levels: the scale's sign puts the largest weight on the extra one.

    llama.cpp's Q4_0 does this; it costs nothing and gains most of a decibel at 4 bits.
    """
    groups = _groups(weight, group_size)
    half = 2 ** (bits - 1)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = _fp16(largest.abs() / half) * torch.where(largest > 0, -1.0, 1.0)
    return _ungroup((groups / scale).round().clamp(-half, half - 1) * scale, weight, bits)


def per_channel(weight: Tensor, bits: int = 8) -> Decoded:
    """Round to nearest with one symmetric scale a row."""
    rounded = _symmetric_round(weight.float(), bits)
    return Decoded(rounded, bits + _SCALE_BITS / weight.shape[1])


def _symmetric_round(groups: Tensor, bits: int) -> Tensor:
    largest = 2 ** (bits - 1) - 1
    scale = _fp16(groups.abs().amax(-1, keepdim=True) / largest)
    return (groups / scale).round().clamp(-largest - 1, largest) * scale


def asymmetric(weight: Tensor, bits: int, group_size: int = 64) -> Decoded:
    """Round to nearest between a group's least and largest weight; `bits` more for a zero point."""
    groups = _groups(weight, group_size)
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    high = groups.amax(-1, keepdim=True).clamp(min=0)
    top = 2**bits - 1
    scale = _fp16((high - low) / top)
    zero = (-low / scale).round()
    rounded = ((groups / scale).round() + zero).clamp(0, top) - zero
    decoded = _ungroup(rounded * scale, weight, bits)
    return decoded._replace(bits=decoded.bits + bits / group_size)


def entropy_coded(weight: Tensor, bits: float) -> Decoded:
    """Reference line: a uniform quantizer whose codes have an empirical entropy of `bits`.

    One step for the whole matrix, found by bisection, and an ideal entropy coder that is told the
    frequencies for nothing: no format can be used like this, and none without vectors or data
    does much better. Raises `ValueError` if the matrix has too few weights to tell.
    """
    if math.log2(weight.numel()) < bits + 2:
        raise ValueError(f"{weight.numel()} weights are too few for an entropy of {bits} bits")
    values = weight.float()
    low, high = values.std().item() * 2.0 ** -(bits + 4), values.abs().max().item()
    for _ in range(_BISECTIONS):
        step = math.sqrt(low * high)
        low, high = (step, high) if _entropy(values, step) > bits else (low, step)
    return Decoded((values / high).round() * high, _entropy(values, high))


def _entropy(values: Tensor, step: float) -> float:
    codes = (values / step).round().long()
    counts = (codes - codes.min()).flatten().bincount()
    share = counts[counts > 0].double() / codes.numel()
    return -(share * share.log2()).sum().item()


def _groups(weight: Tensor, group_size: int) -> Tensor:
    padding = -weight.shape[1] % group_size
    padded = torch.nn.functional.pad(weight.detach().float(), (0, padding))
    return padded.reshape(weight.shape[0], -1, group_size)


def _ungroup(groups: Tensor, weight: Tensor, bits: int) -> Decoded:
    rows, count, group_size = groups.shape
    stored = rows * count * (group_size * bits + _SCALE_BITS)
    decoded = groups.flatten(1)[:, : weight.shape[1]].contiguous()
    return Decoded(decoded, stored / weight.numel())


def _fp16(scale: Tensor) -> Tensor:
    """Scales of fp16's 11 significant bits, any exponent (a format may store one a tensor).

    Never zero, so that a group of zeros divides to zeros.
    """
    significand, exponent = torch.frexp(scale)
    rounded = torch.ldexp((significand * 2048).round() / 2048, exponent)
    return rounded.clamp(min=torch.finfo(torch.float32).tiny)


PEERS: dict[str, Peer] = {
    "NF4 absmax g64": nf4,
    "NF4 searched g64": nf4_searched,
    "int4 symmetric g64": functools.partial(symmetric, bits=4),
    "int4 signed g64": functools.partial(signed, bits=4),
    "int4 asymmetric g64": functools.partial(asymmetric, bits=4),
    "int8 g64": functools.partial(symmetric, bits=8),
    "int8 signed g64": functools.partial(signed, bits=8),
    "int8 per channel": per_channel,
    "entropy-coded 4.25": functools.partial(entropy_coded, bits=4.25),
    "entropy-coded 8.25": functools.partial(entropy_coded, bits=8.25),
}
