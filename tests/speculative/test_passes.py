"""Compiled passes say what eager ones say; caches hold what plain decoding would have written."""

from __future__ import annotations

import warnings

import pytest
import torch

import phiquant
from phiquant.speculative import Statistics, passes
from phiquant.speculative.passes import Passes
from tests.speculative.support import alone, llama, prompt


def test_a_rejected_entry_leaves_no_trace() -> None:
    """Wrong tokens are read by the draft and by the model; then the right ones."""
    model, ids = llama(), prompt(9)
    clean = Passes(model, model, 64, compile=False, captured=False)
    used = Passes(model, phiquant.draft(model), 64, compile=False, captured=False)
    for made in (clean, used):
        made.start(ids[:, :4], [4])
    wrong = (ids[:, 4:8] + 1) % 90
    for place in range(4):
        used.draft(wrong[:, place : place + 1], torch.tensor([[4 + place]]), 4 + place)
    used.verify(wrong, torch.arange(4, 8)[None], 4)
    right = ids[:, 4:6], torch.tensor([[4, 5]]), 4
    assert torch.equal(clean.verify(*right), used.verify(*right))
    assert torch.equal(clean.cache.keys[:, :, :6], used.cache.keys[:, :, :6])


def test_rows_that_are_at_other_places_see_their_own_past() -> None:
    model, ids = llama(), prompt(9, rows=2)
    made = Passes(model, model, 64, compile=False, captured=False)
    lengths = [4, 7]
    first = made.start(ids, lengths)
    tokens = torch.stack([ids[0, 4:6], ids[1, 7:9]])
    positions = torch.tensor([[4, 5], [7, 8]])
    logits = made.verify(tokens, positions, 4)
    with torch.inference_mode():
        for row, length in enumerate(lengths):
            whole = model(ids[row : row + 1, : length + 2]).logits[0]
            assert torch.allclose(first[row], whole[length - 1], atol=1e-4)
            assert torch.allclose(logits[row], whole[length:], atol=1e-4)


def test_a_cache_that_is_not_started_says_so() -> None:
    made = Passes(llama(), llama(), 64, compile=False, captured=False)
    with pytest.raises(RuntimeError, match="comes first"):
        made.prepare(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2])
def test_compiled_passes_say_the_same(rows: int) -> None:
    model, ids = llama(), prompt(rows=rows)
    told = Statistics()
    found = phiquant.generate(
        model, ids, max_new_tokens=16, draft_tokens=3, compile=True, statistics=told
    )
    assert torch.equal(found, alone(model, ids, 16))
    assert told.accepted
    again = phiquant.generate(model, ids, max_new_tokens=12, draft_tokens=3, compile=True)
    assert torch.equal(again, found[:, : 7 + 12])  # with what the first call left in the cache


def test_without_a_compiler_passes_are_eager_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: broken)
    monkeypatch.setattr(passes, "_told", set())
    model, ids = llama(), prompt()
    with pytest.warns(UserWarning, match="no compiler"):
        found = phiquant.generate(model, ids, max_new_tokens=8, draft_tokens=2, compile=True)
    assert torch.equal(found, alone(model, ids, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        phiquant.generate(model, ids, max_new_tokens=8, draft_tokens=4, compile=True)


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [1, 3])
def test_captured_passes_say_what_single_tokens_say(rows: int) -> None:
    model, ids = llama().cuda(), prompt(rows=rows).cuda()
    wanted = phiquant.generate(model, ids, max_new_tokens=24, draft_tokens=0)
    for drafted in (None, 1, 3):
        found = phiquant.generate(model, ids, max_new_tokens=24, draft_tokens=drafted)
        assert torch.equal(found, wanted)
    assert torch.equal(found, alone(model, ids, 24))


@pytest.mark.cuda
def test_captured_passes_draw_from_the_distribution_of_the_model() -> None:
    """The first two tokens of many equal rows, against exact probabilities."""
    words = 6
    model = llama(words=words).cuda()
    ids = prompt(3, words=words).cuda().expand(4000, -1).contiguous()
    generator = torch.Generator("cuda").manual_seed(0)
    found = phiquant.generate(
        model, ids, max_new_tokens=2, do_sample=True, temperature=3.0, draft_tokens=1,
        generator=generator,
    )[:, 3:].cpu()  # fmt: skip
    with torch.inference_mode():
        p = (model(ids[:1]).logits[0, -1].float() / 3).softmax(-1).cpu()
    counts = torch.bincount(found[:, 0], minlength=words).float()
    assert float(((counts - 4000 * p).square() / (4000 * p)).sum()) < 40
