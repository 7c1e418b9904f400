"""Compiled passes say what eager ones say; caches hold what plain decoding would have written."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import phiquant
from phiquant.integrations import hf_attention
from phiquant.speculative import Statistics, passes
from phiquant.speculative.choice import Greedy
from phiquant.speculative.layers import CompiledLayers
from phiquant.speculative.pace import Pace
from phiquant.speculative.passes import Passes, step
from phiquant.speculative.rounds import decode
from phiquant.speculative.sequences import Sequences
from phiquant.speculative.stepwise import Stepwise
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


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_only_compiled_passes_attend_by_groups(
    compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, found = llama(), prompt(9), []

    def making(*operands: Any, by_layers: bool) -> Any:
        found.append(model.config._attn_implementation)
        return step

    monkeypatch.setattr(passes, "compiled", making)
    made = Passes(model, model, 64, compile, captured=False)
    made.start(ids[:, :4], [4])
    made.prepare(1, 2)
    assert found == [hf_attention.NAME] * (3 if compile else 0)
    assert model.config._attn_implementation == "sdpa"


def test_compiled_passes_are_as_wide_as_they_need_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sequence on a CPU proposes token by token; passes are of few widths, and filled up."""
    model, ids, made, told = llama(), prompt(), [], Statistics()

    def making(tokens: Tensor, *operands: Any, by_layers: bool) -> Any:
        made.append(tokens.shape[1])
        return step

    def logits(model: Any, cache: Any, tokens: Tensor, positions: Tensor, mask: Any) -> Tensor:
        assert mask is not None, "a pass that was not made"
        return written(model, cache, tokens, positions, mask)

    written = passes._logits
    monkeypatch.setattr(passes, "compiled", making)
    monkeypatch.setattr(passes, "_logits", logits)
    monkeypatch.setattr(Stepwise, "_seconds_more", lambda self: 0.0)
    found = phiquant.generate(model, ids, max_new_tokens=90, compile=True, statistics=told)
    assert torch.equal(found, alone(model, ids, 90))
    assert sorted(made) == [1, 1, 2, 3, 5]  # the draft's, too
    assert told.repeated
    assert all(round.passes + round.repeated <= 4 for round in told.rounds)
    again = phiquant.generate(model, ids, max_new_tokens=90, draft_tokens=0, compile=True)
    assert torch.equal(again, found)
    assert len(made) == 5


def test_nothing_is_collected_while_a_graph_is_captured() -> None:
    with passes._no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


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


@pytest.mark.parametrize(
    ("widths", "wanted"), [((4,), [4, 4, 4, 4, 4]), ((1, 2, 4), [1, 4, 1, 4, 2])], ids=str
)
def test_passes_of_given_widths_say_what_is_asked_for(
    widths: tuple[int, ...], wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fewer tokens, of as many and of more, which take several passes."""
    model, ids = llama(), prompt(16)
    clean = Passes(model, model, 64, compile=False, captured=False)
    wide = Passes(model, model, 64, compile=False, captured=False, widths=widths)
    for made in (clean, wide):
        made.start(ids[:, :4], [4])
    run, found = wide._run, []

    def noted(name: str, tokens: Tensor, positions: Tensor, seen: int) -> Tensor:
        found.append(tokens.shape[1])
        return run(name, tokens, positions, seen)

    monkeypatch.setattr(wide, "_run", noted)
    for first, last in ((4, 5), (5, 8), (8, 9), (9, 15)):
        read = ids[:, first:last], torch.arange(first, last)[None], first
        assert torch.allclose(wide.verify(*read), clean.verify(*read), atol=1e-4)
    assert found == wanted
    assert [wide.count(tokens) for tokens in (1, 4, 5)] == [1, 1, 2]
    assert clean.count(5) == 1


@pytest.mark.parametrize("drafted", [0, 3, 6])
def test_texts_of_passes_of_one_width(drafted: int) -> None:
    model, ids, told = llama(), prompt(), Statistics()
    passes = Passes(model, phiquant.draft(model), 128, False, False, widths=(4,))
    sequences = Sequences(ids, None, 40, set(), ())
    decode(passes, sequences, Greedy(0.0), Pace((drafted,), drafted), told, lambda taken: None)
    assert sequences.new[0] == alone(model, ids, 40)[0, 7:].tolist()
    assert told.deep_passes == sum(-(-(r.passes + 1) // 4) for r in told.rounds)


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["exact", "deviation"])
def test_one_code_for_all_layers(tier: str) -> None:
    """Whose remainders are of different sizes; a layer that is stored otherwise has its own."""
    model, ids = llama(num_hidden_layers=3), prompt(9)
    model.model.layers[1].mlp.down_proj = phiquant.dequantize_(model.model.layers[1].mlp.down_proj)
    model = phiquant.view(model, tier)
    made = Passes(model, model, 64, compile=False, captured=False)
    made.start(ids[:, :4], [4])
    read = ids[:, 4:7].contiguous(), torch.tensor([[4, 5, 6]])
    layers = CompiledLayers.of(model, made.cache)
    assert layers is not None
    assert len({call.args[0] for call in layers.calls}) == 2
    with torch.inference_mode():
        wanted = step(model, made.cache, *read)
        run = passes.compiled(*read, model, made.cache, by_layers=True)
        made.cache.layers[2].keys[:, :, 4:] = 7.0  # type: ignore[index]
        assert torch.allclose(run(model, made.cache, *read), wanted, atol=1e-4)
    assert not any("forward" in vars(layer) for layer in layers.layers)


def test_layers_with_hooks_are_not_compiled_alone() -> None:
    model = llama()
    cache = Passes(model, model, 64, compile=False, captured=False).cache
    assert CompiledLayers.of(model, cache) is not None
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert CompiledLayers.of(model, cache) is None


@pytest.mark.cuda
@pytest.mark.parametrize(
    "compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("tier", "width"), [("exact", 8), ("deviation", 4)])
def test_a_token_has_the_same_bits_wherever_it_is_in_a_pass(
    tier: str, width: int, dtype: torch.dtype, compile: bool
) -> None:
    sizes = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = llama(intermediate_size=1536, **sizes).to(dtype).cuda()  # type: ignore[arg-type]
    model = phiquant.view(model, tier)
    made = Passes(model, model, 256, compile, captured=True, widths=(width,))
    ids, places = prompt(30).cuda(), torch.arange(30, device="cuda")[None]
    found = []
    for parts in ([1] * 20, [3, 1, 4, 2, 4, 1, 3, 2], [8, 8, 4]):
        made.start(ids[:, :10], [10])
        made.prepare(1, 0)
        logits, first = [], 10
        for part in parts:
            read = slice(first, first + part)
            logits.append(made.verify(ids[:, read], places[:, read], first))
            first += part
        found.append((torch.cat(logits, 1), made.cache.keys[:, :, :30].clone()))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("tier", ["exact", "deviation"])
def test_texts_in_bf16_are_the_same_with_drafts_and_without(tier: str) -> None:
    model, ids = phiquant.view(llama().bfloat16().cuda(), tier), prompt().cuda()  # type: ignore[attr-defined]
    wanted = phiquant.generate(model, ids, max_new_tokens=64, draft_tokens=0)
    for drafted in (None, 1, 3, 9):
        told = Statistics()
        found = phiquant.generate(
            model, ids, max_new_tokens=64, draft_tokens=drafted, statistics=told
        )
        assert torch.equal(found, wanted)
        assert not told.ties


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
