"""Tiers of a compressed model: read fewer planes, in place for a while or as a second model."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from phiquant.codec.layout import check_choice
from phiquant.tensor import PhiTensor

TIERS = ("index", "deviation", "exact")


@contextmanager
def at_precision(
    model: nn.Module, tier: str, pattern: str | None = None, activation: str | None = None
) -> Iterator[nn.Module]:
    """Run ``model`` less deep inside a ``with`` block; nothing is copied.

    Embeddings and output heads follow like all others: leave them out with ``pattern``.

    Args:
        model: a compressed module; plain parameters stay as they are.
        tier: "index" reads the index plane alone, "deviation" all lossy planes, "exact" the
            remainder too.
        pattern: a regular expression; only parameters whose full name it matches from the start
            change.
        activation: "int8", at the tier "index" only, lets products round each row of their input
            to int8 (127 steps to its largest magnitude) where a kernel is faster for it, as
            ``phiquant doctor`` tells; "bf16", at the tier "deviation" only, to bf16; None, the
            default, takes inputs as they are.

    Raises:
        ValueError: the tier is unknown, no compressed parameter matches, one has no remainder
            where "exact" is asked for, or ``activation`` is not possible. Nothing is changed.

    >>> from phiquant import quantize_
    >>> model = nn.Linear(128, 64)
    >>> _ = quantize_(model)
    >>> with at_precision(model, "index"):
    ...     model.weight.bits_per_weight
    4.25
    >>> model.weight.bits_per_weight
    8.25
    """
    places = places_of(model, tier, pattern)
    shallow = {id(p): at_tier(p, tier, activation) for _, _, p in places}
    try:
        for module, leaf, parameter in places:
            setattr(module, leaf, shallow[id(parameter)])
        yield model
    finally:
        for module, leaf, parameter in places:
            setattr(module, leaf, parameter)


def view(
    model: nn.Module, tier: str, pattern: str | None = None, activation: str | None = None
) -> nn.Module:
    """A second model on the same planes, buffers and plain parameters, read less deep.

    It costs no weight memory, is compiled once on its own, and follows values that are written to
    the planes in place, but not a later replacement of the model's parameters or planes (loading
    another state into exact weights replaces planes, whose sizes differ). Arguments and errors as
    of :func:`at_precision`.

    >>> from phiquant import quantize_
    >>> model = nn.Linear(128, 64)
    >>> _ = quantize_(model)
    >>> draft = view(model, "index")
    >>> draft.weight.index_plane.data_ptr() == model.weight.index_plane.data_ptr()
    True
    """
    places = places_of(model, tier, pattern)
    shallow = {id(p): at_tier(p, tier, activation) for _, _, p in places}
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared | shallow)


def at_tier(parameter: PhiTensor, tier: str, activation: str | None = None) -> PhiTensor:
    """A parameter on the same planes that is read at ``tier``.

    Raises:
        ValueError: "exact" on a parameter without a remainder, or an ``activation`` of another
            tier.
    """
    needed = {"int8": "index", "bf16": "deviation"}.get(activation or "", tier)
    if tier != needed:
        raise ValueError(f"activation={activation!r} needs the tier {needed!r}, got {tier!r}")
    if tier == "exact":
        if not parameter.is_exact:
            raise ValueError(
                f"{parameter.describe()}: has no remainder, so there is no tier 'exact': it was "
                "compressed without exact=True, or this is a view of a shallower tier"
            )
        return parameter
    bits = 0 if tier == "index" else parameter.deviation_bits
    shallow = nn.Parameter(parameter.at(bits, activation), requires_grad=False)
    assert isinstance(shallow, PhiTensor)
    shallow.fqn = parameter.fqn
    return shallow


def places_of(
    model: nn.Module, tier: str, pattern: str | None
) -> list[tuple[nn.Module, str, PhiTensor]]:
    """Where compressed parameters are that match, each owner of a shared one on its own."""
    check_choice("tier", tier, TIERS)
    matches = re.compile(pattern or "").match
    places = [
        (module, leaf, parameter)
        for prefix, module in model.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, PhiTensor) and matches(f"{prefix}.{leaf}" if prefix else leaf)
    ]
    if not places:
        which = f"matches {pattern!r}" if pattern else "is compressed"
        raise ValueError(f"model: no parameter {which}; compress it with phiquant.quantize_ first")
    return places
