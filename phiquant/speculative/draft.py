"""The model that drafts: the same weights, read less deep."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from phiquant.precision import at_tier, places_of
from phiquant.tensor import PhiTensor

Model = TypeVar("Model", bound=nn.Module)


def draft(
    model: Model,
    pattern: str | None = None,
    activation: str | None = "int8",
    tier: str = "index",
) -> Model:
    """A second model on the same planes, buffers and plain parameters that reads less of them.

    It costs no weight memory. Weights are read at their index plane alone, but for two kinds:
    tables of embeddings keep their depth, since a token reads one row of them; and an output head
    that is tied to such a table keeps its deviation, as :func:`phiquant.quantize_` keeps it. For
    transformers: ``model.generate(..., assistant_model=phiquant.draft(model))``.

    Args:
        model: a compressed module that reads more than indices.
        pattern: a regular expression; only weights whose full name it matches from the start are
            read less deep. ``r"(?!lm_head)"`` leaves the output head as it is.
        activation: "int8" lets products round their input where a kernel is faster for it, with
            indices to int8, with deviations to bf16: a draft may err, and what verifies it never
            does that. None takes inputs as they are.
        tier: "index", or "deviation" for a draft of an exact model that nearly always holds.

    Raises:
        ValueError: no compressed parameter matches, all that do are read no deeper already, or
            there is no such tier.

    >>> from phiquant import quantize_
    >>> model = nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 64))
    >>> _ = quantize_(model)
    >>> drafting = draft(model)
    >>> drafting[0].weight.bits_per_weight, drafting[1].weight.bits_per_weight
    (8.25, 4.25)
    """
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    drafting = copy.deepcopy(model, shared)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    places = [
        place
        for place in places_of(drafting, tier, pattern)
        if not isinstance(place[0], nn.Embedding)
    ]
    shallow = {
        id(p): _less_deep(p, "deviation" if id(p) in tables else tier, activation)
        for _, _, p in places
    }
    if not any(shallow[id(p)].stored_bytes < p.stored_bytes for _, _, p in places):
        which = f"matches {pattern!r}" if pattern else "is compressed"
        raise ValueError(
            f"model: all that {which} is read at {tier!r} at most: nothing is less deep"
        )
    for module, leaf, parameter in places:
        setattr(module, leaf, shallow[id(parameter)])
    return drafting


def _less_deep(parameter: PhiTensor, tier: str, activation: str | None) -> PhiTensor:
    """At a tier, or at indices if there is nothing else; inputs are rounded as that tier has it."""
    if tier == "index" or not parameter.deviation_bits:
        return at_tier(parameter, "index", activation)
    return at_tier(parameter, tier, activation and "bf16")
