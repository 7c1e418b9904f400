"""Planes and bytes that are counted are those that are read."""

from __future__ import annotations

import pytest

import phiquant
from phiquant.speculative import Statistics
from phiquant.speculative.statistics import Reading, Round
from tests.speculative.support import llama, prompt


def test_a_reading_counts_products_once_and_no_tables() -> None:
    model = llama(tie_word_embeddings=False)
    deep, shallow = Reading.of(model), Reading.of(phiquant.draft(model))
    assert (deep.planes, shallow.planes) == (3, 1)
    assert Reading.of(phiquant.view(model, "deviation")).planes == 2
    weights = [m.weight for m in model.modules() if type(m).__name__ == "Linear"]
    norms = sum(p.nbytes for n, p in model.named_parameters() if "norm" in n)
    assert deep.bytes == pytest.approx(sum(w.stored_bytes for w in weights) + norms)
    assert shallow.bytes == pytest.approx(sum(w.numel() * 4.25 / 8 for w in weights) + norms)


def test_means_are_over_tokens() -> None:
    told = Statistics(Reading(110, 3), Reading(40, 1))
    told.rounds = [Round(4, 4, 5, 4, 0), Round(4, 1, 2, 4, 1)]
    assert told.acceptance == 5 / 8
    assert told.deep_passes == 3
    assert told.tokens_per_pass == pytest.approx(7 / 3)
    assert told.planes_per_token == pytest.approx((3 * 3 + 8 * 1) / 7)
    assert told.bytes_per_token == pytest.approx((3 * 110 + 8 * 40) / 7)


def test_repeated_tokens_are_counted_apart_and_read_nothing() -> None:
    told = Statistics(Reading(110, 3), Reading(40, 1))
    told.rounds = [Round(1, 1, 4, 1, 0, repeated=4, echoed=2)]
    assert (told.drafted, told.accepted, told.repeated, told.echoed) == (1, 1, 4, 2)
    assert told.planes_per_token == pytest.approx((3 + 1) / 4)
    assert "2 of 4 repeated ones" in str(told)


def test_generation_fills_them_in_and_adds_up() -> None:
    model, told = llama(), Statistics()
    for _ in range(2):
        phiquant.generate(model, prompt(), max_new_tokens=16, draft_tokens=3, statistics=told)
    assert told.new_tokens == 32
    assert told.prompt_tokens == 14
    assert sum(r.tokens for r in told.rounds) == 30
    assert told.seconds > 0
    assert "32 tokens" in str(told)
    assert 1 < told.planes_per_token < 3.5
