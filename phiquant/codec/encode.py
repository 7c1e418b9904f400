"""Weights to planes: choose a sign and a bend for every group, then read off the codes."""

from __future__ import annotations

import torch
from torch import Tensor

from phiquant.codec import cells, exceptions, remainder
from phiquant.codec.decode import join_codes
from phiquant.codec.denormals import denormals_kept
from phiquant.codec.layout import Layout, Planes, check_choice
from phiquant.codec.packing import pack
from phiquant.codec.scales import power_of_two, read_words, smallest_scale, smallest_words

FITS = ("joint", "index", "deviation", "exact")
PRICES = {"joint": 1 / 32, "exact": 1 / 4}  # of a remainder bit, in bits of the score's logarithm
LARGEST = torch.finfo(torch.float32).max


def encode(
    weight: Tensor, layout: Layout, fit: str = "joint", importance: Tensor | None = None
) -> Planes:
    """The readable reference of the encoder.

    Args:
        weight: bf16, fp16 or fp32 ``[..., columns]``, finite. With ``layout.stored_dtype``, which
            is then its dtype, it may hold infinities and NaN.
        layout: how to cut the planes; ``layout.exponent`` as from :func:`exponent_for`.
        fit: what the choice of sign and bend minimises: "index" or "deviation", the squared error
            of that tier, or "joint", log(index) + 1/2 log(deviation). Where there is a remainder,
            its bits have a price in "joint", and a higher one in "exact".
        importance: fp32 ``[columns]`` >= 0, weights of the squared errors, or None for ones.

    Raises:
        ValueError: ``fit`` is unknown, or "exact" without a stored dtype.
    """
    check_fit(fit, layout)
    leading, weight = weight.shape[:-1], weight.detach()
    if layout.stored_dtype is not None:
        weight = torch.where(weight.isfinite(), weight, 0)  # an exception; any code will do
    with denormals_kept():
        groups = _grouped(weight.float(), layout)
        words = choose_words(groups, layout, fit, _weights_of_errors(weight, importance, layout))
        scale, bend = read_words(words, layout)
        codes = cells.find(groups, scale.unsqueeze(-1), bend.unsqueeze(-1), layout)
    codes = torch.where(
        _is_padding(layout, weight.device), 0, codes.unflatten(0, (-1, layout.groups))
    )
    planes = split_codes(codes.view(*leading, layout.groups * layout.group_size), layout)
    return planes._replace(scale=words.view(*leading, layout.groups))


def encode_remainder(weight: Tensor, planes: Planes, layout: Layout) -> Planes:
    """The lossy ``planes`` of a weight with what is left to ``weight`` itself, bit for bit.

    Args:
        weight: what :func:`encode` was given, in ``layout.stored_dtype``.
    """
    assert layout.stored_dtype is not None
    with denormals_kept():
        scale, bend = read_words(planes.scale, layout)
        codes = join_codes(planes, layout).unflatten(-1, (layout.groups, layout.group_size))
        within = remainder.subcells(
            codes, scale.unsqueeze(-1), bend.unsqueeze(-1), layout, layout.stored_dtype
        )
        within = remainder.of_rows(within, layout.columns)
        planes, astray = remainder.encode(weight, within, planes)
        return planes._replace(exceptions=exceptions.collect(weight, astray))


def check_fit(fit: str, layout: Layout) -> None:
    check_choice("fit", fit, FITS)
    if fit == "exact" and layout.stored_dtype is None:
        raise ValueError("fit='exact' minimises the remainder, which needs exact=True")


def split_codes(codes: Tensor, layout: Layout) -> Planes:
    """Codes ``[..., groups * group_size]`` to packed planes; the scale plane is left empty."""
    high, low = layout.high_bits, layout.low_bits
    return Planes(
        index=pack(codes >> layout.deviation_bits, layout.index_bits),
        deviation=pack(codes >> low & (1 << high) - 1, high) if high else None,
        deviation_low=pack(codes & (1 << low) - 1, low) if low else None,
        scale=torch.empty(0, dtype=torch.int16),
    )


def choose_words(groups: Tensor, layout: Layout, fit: str, importance: Tensor | None) -> Tensor:
    """The best word of every bend and sign: int16 ``[n]`` for fp32 ``groups [n, group_size]``.

    The first of equal candidates wins; they are tried bend by bend, the positive sign first.
    """
    above = groups.amax(-1).clamp(min=0)
    below = (-groups).amax(-1).clamp(min=0)
    unit = _normaliser(torch.maximum(above, below).clamp(min=smallest_scale(layout)))
    best = torch.full_like(above, torch.inf, dtype=torch.float64)
    words = torch.zeros_like(above, dtype=torch.int32)
    for bend in range(layout.curve.bends):
        for sign, long_end, short_end in ((0, above, below), (0x8000, below, above)):
            magnitude, scale = smallest_words(long_end, short_end, bend, layout)
            signed = (-scale if sign else scale).unsqueeze(-1)
            score = _score(groups, signed, bend, layout, fit, importance, unit)
            words = torch.where(score < best, magnitude | sign | bend, words)
            best = torch.minimum(best, score)
    return words.to(torch.int16)


def _score(
    groups: Tensor,
    scale: Tensor,
    bend: int,
    layout: Layout,
    fit: str,
    importance: Tensor | None,
    unit: Tensor,
) -> Tensor:
    """What ``fit`` minimises, fp64 ``[n]``; sums of logarithms are taken as products."""
    bends = torch.full((1, 1), bend, device=groups.device)
    codes = cells.find(groups, scale, bends, layout)

    def error(bits: int) -> Tensor:
        level = cells.levels(codes >> layout.deviation_bits - bits, bends, layout, bits)
        decoded = (level * scale).clamp(-LARGEST, LARGEST)  # as decoding saturates
        squares = ((decoded - groups) * unit).double().square()
        return (squares if importance is None else squares * importance).sum(-1)

    if fit == "index" or layout.deviation_bits == 0:
        return error(0)
    deepest = error(layout.deviation_bits)
    if fit == "deviation":
        return deepest
    joint = error(0).square() * deepest
    if layout.stored_dtype is None:
        return joint
    within = remainder.subcells(codes, scale, bends, layout, layout.stored_dtype)
    pad = _is_padding(layout, groups.device).repeat(len(groups) // layout.groups, 1)
    bits = torch.where(pad, 0, within.width).sum(-1)
    return joint * torch.exp2(bits.double() * PRICES[fit])


def _normaliser(absmax: Tensor) -> Tensor:
    """Powers of two ``[n, 1]`` that bring groups near 1, so that squares stay in range."""
    exponent = torch.frexp(absmax).exponent.clamp(-126, 126)
    powers = torch.tensor([power_of_two(-e) for e in range(-126, 127)], device=absmax.device)
    return powers[exponent.long() + 126].unsqueeze(-1)


def _weights_of_errors(weight: Tensor, importance: Tensor | None, layout: Layout) -> Tensor | None:
    """The importance of every weight, 0 where a short group is padded; None if all are 1."""
    if importance is None:
        if layout.columns % layout.group_size == 0:
            return None
        importance = torch.ones(layout.columns, device=weight.device)
    return _grouped(importance.float().expand(weight.shape), layout)


def _grouped(weight: Tensor, layout: Layout) -> Tensor:
    """``[..., columns]`` to ``[rows * groups, group_size]``, padded with zeros."""
    padding = layout.groups * layout.group_size - layout.columns
    return torch.nn.functional.pad(weight, (0, padding)).reshape(-1, layout.group_size)


def _is_padding(layout: Layout, device: torch.device) -> Tensor:
    place = torch.arange(layout.groups * layout.group_size, device=device)
    return (place >= layout.columns).view(layout.groups, layout.group_size)
