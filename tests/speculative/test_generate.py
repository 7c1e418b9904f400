"""What comes out is what the model alone says: at every border, in batches, with any draft."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

import phiquant
from phiquant.speculative import Statistics
from phiquant.speculative.stepwise import Stepwise
from tests.speculative.support import WORDS, alone, llama, prompt


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return llama()


class WrongDraft(nn.Module):
    """Says what the model does not; its keys and values are nonsense of the right shape."""

    def __init__(self, model: LlamaForCausalLM, known: Tensor) -> None:
        super().__init__()
        self.inner, self.known = llama(seed=9), known
        self.config = model.config

    def forward(self, position_ids: Tensor, **inputs: Any) -> Any:
        output = self.inner(position_ids=position_ids, **inputs)
        right = self.known[:, position_ids[0] + 1]
        output.logits = nn.functional.one_hot((right + 1) % WORDS, WORDS).float()
        return output


@pytest.mark.parametrize("tier", ["exact", "deviation"])
@pytest.mark.parametrize("drafted", [None, 0, 1, 3, 7])
def test_greedy_tokens_are_those_of_the_model_alone(
    model: LlamaForCausalLM, tier: str, drafted: int | None
) -> None:
    deep = phiquant.view(model, tier)
    for seed in range(3):
        ids = prompt(seed=seed)
        found = phiquant.generate(deep, ids, max_new_tokens=30, draft_tokens=drafted)
        assert torch.equal(found, alone(deep, ids, 30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_dtypes_and_attentions(dtype: torch.dtype, attention: str) -> None:
    model = llama().to(dtype)
    model.set_attn_implementation(attention)
    ids = prompt()
    found = phiquant.generate(model, ids, max_new_tokens=24, draft_tokens=4)
    assert torch.equal(found, phiquant.generate(model, ids, max_new_tokens=24, draft_tokens=0))
    assert torch.equal(found, alone(model, ids, 24))


@pytest.mark.parametrize("tier", ["exact", "deviation"])
def test_a_text_that_repeats_itself_is_that_of_the_model_alone(
    model: LlamaForCausalLM, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of passes this small are noise: repeats are free here, drafts take a pass."""
    monkeypatch.setattr(Stepwise, "_seconds_more", lambda self: 0.0)
    monkeypatch.setattr(Stepwise, "_seconds_of_draft", Stepwise._seconds_plain)
    deep, told = phiquant.view(model, tier), Statistics()
    for seed in range(3):
        ids = prompt(6, seed=seed).repeat(1, 4)
        found = phiquant.generate(deep, ids, max_new_tokens=60, statistics=told)
        assert torch.equal(found, alone(deep, ids, 60))
    assert told.repeated > 20
    assert told.echoed > 0


def test_a_draft_that_is_always_wrong_changes_nothing(model: LlamaForCausalLM) -> None:
    ids = prompt()
    wanted = alone(model, ids, 20)
    wrong = WrongDraft(model, torch.nn.functional.pad(wanted, (0, 8)))
    told = Statistics()
    found = phiquant.generate(
        model, ids, max_new_tokens=20, draft=wrong, draft_tokens=3, statistics=told
    )
    assert torch.equal(found, wanted)
    assert told.drafted > 0
    assert told.accepted == 0


def test_a_draft_that_is_the_model_is_always_right(model: LlamaForCausalLM) -> None:
    told = Statistics()
    ids = prompt()
    found = phiquant.generate(
        model, ids, max_new_tokens=21, draft=model, draft_tokens=4, statistics=told
    )
    assert torch.equal(found, alone(model, ids, 21))
    assert told.acceptance == 1
    assert len(told.rounds) == 4  # the prompt's token, then five a round


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6])
def test_it_stops_at_the_last_token_that_was_asked_for(model: LlamaForCausalLM, count: int) -> None:
    ids = prompt()
    wanted = alone(model, ids, 8)[:, : 7 + count]
    assert torch.equal(phiquant.generate(model, ids, max_new_tokens=count, draft_tokens=4), wanted)
    assert torch.equal(phiquant.generate(model, ids, max_length=7 + count, draft_tokens=4), wanted)


@pytest.mark.parametrize("place", range(8))
def test_a_token_that_ends_a_text_is_its_last(model: LlamaForCausalLM, place: int) -> None:
    ids = prompt(seed=3)
    text = alone(model, ids, 12)
    end = int(text[0, 7 + place])
    first = text[0, 7:].tolist().index(end)
    for ends in (end, [WORDS - 1, end]):
        found = phiquant.generate(model, ids, max_new_tokens=12, eos_token_id=ends, draft_tokens=4)
        assert torch.equal(found[0, : 7 + first + 1], text[0, : 7 + first + 1])
        assert found.shape[1] == 7 + first + 1 or WORDS - 1 in text[0]


def test_stopping_criteria_are_asked_after_every_token(model: LlamaForCausalLM) -> None:
    asked: list[int] = []

    def stop(ids: Tensor, scores: Any) -> Tensor:
        asked.append(ids.shape[1])
        return torch.tensor([ids.shape[1] >= 13])

    ids = prompt()
    found = phiquant.generate(
        model, ids, max_new_tokens=20, stopping_criteria=[stop], draft_tokens=4
    )
    assert torch.equal(found, alone(model, ids, 6))
    assert asked == list(range(8, 14))


@pytest.mark.parametrize("drafted", [None, 0, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_sequences_of_a_batch_accept_as_many_as_they_can(
    model: LlamaForCausalLM, side: str, drafted: int | None
) -> None:
    lengths = (3, 9, 5)
    texts = [prompt(length, seed=seed) for seed, length in enumerate(lengths)]
    wanted = [alone(model, text, 20)[0, text.shape[1] :] for text in texts]
    end = int(wanted[0][4])
    ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(9 - text.shape[1], 9) if side == "left" else slice(0, text.shape[1])
        ids[row, place], mask[row, place] = text[0], 1
    found = phiquant.generate(
        model,
        ids,
        attention_mask=mask,
        max_new_tokens=20,
        eos_token_id=end,
        pad_token_id=0,
        draft_tokens=drafted,
    )
    assert torch.equal(found[:, :9], ids)
    for row, text in zip(found[:, 9:].tolist(), wanted, strict=True):
        whole = text.tolist()
        kept = whole[: whole.index(end) + 1] if end in whole else whole
        assert row == kept + [0] * (len(row) - len(kept))


def test_what_comes_out_may_be_trained_on(model: LlamaForCausalLM) -> None:
    found = phiquant.generate(model, prompt(), max_new_tokens=4)
    table = nn.Embedding(WORDS, 4)
    table(found).sum().backward()
    assert table.weight.grad is not None


def test_tokens_are_streamed_as_they_come(model: LlamaForCausalLM) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.got: list[Tensor] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.got.append(value)

        def end(self) -> None:
            self.ended = True

    streamer, ids = Streamer(), prompt()
    found = phiquant.generate(model, ids, max_new_tokens=20, draft_tokens=4, streamer=streamer)
    assert streamer.ended
    assert torch.equal(streamer.got[0], ids)
    assert torch.equal(torch.cat([ids[0], *streamer.got[1:]]), found[0])
    assert len(streamer.got) > 3


def test_near_ties_are_settled_by_single_tokens(model: LlamaForCausalLM) -> None:
    ids, told = prompt(), Statistics()
    found = phiquant.generate(
        model, ids, max_new_tokens=12, draft_tokens=3, tie_tolerance=1e9, statistics=told
    )
    assert torch.equal(found, alone(model, ids, 12))
    assert told.ties >= told.new_tokens - 1 - len(told.rounds)


def test_what_was_learnt_is_kept_and_neither_copied_nor_saved(model: LlamaForCausalLM) -> None:
    import copy
    import pickle

    phiquant.generate(model, prompt(), max_new_tokens=4)
    runner = model.__dict__["_phiquant_runner"]
    phiquant.generate(model, prompt(), max_new_tokens=4)
    assert model.__dict__["_phiquant_runner"] is runner
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.__dict__["_phiquant_runner"] is None
        assert torch.equal(
            phiquant.generate(other, prompt(), max_new_tokens=4), alone(model, prompt(), 4)
        )


def test_weights_that_were_replaced_get_a_draft_of_their_own() -> None:
    model, other = llama(), llama(seed=5)
    phiquant.generate(model, prompt(), max_new_tokens=4)
    model.load_state_dict(other.state_dict(), assign=True)
    model.tie_weights()
    told = Statistics()
    found = phiquant.generate(model, prompt(), max_new_tokens=30, draft_tokens=3, statistics=told)
    assert torch.equal(found, alone(other, prompt(), 30))
    fresh = Statistics()
    phiquant.generate(other, prompt(), max_new_tokens=30, draft_tokens=3, statistics=fresh)
    assert told.rounds == fresh.rounds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_tokens": -1}, "draft_tokens"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask"),
        ({"attention_mask": torch.zeros(1, 7)}, "a token to go on from"),
    ],
)
def test_what_is_not_possible_is_said(
    model: LlamaForCausalLM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        phiquant.generate(model, prompt(), **options)


def test_a_batch_cannot_be_streamed(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="one sequence"):
        phiquant.generate(model, prompt(rows=2), streamer=object())


def test_other_models_are_refused_with_what_takes_them() -> None:
    with pytest.raises(TypeError, match="causal language model"):
        phiquant.generate(nn.Linear(4, 4), prompt())
    config = MistralConfig(
        vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match="assistant_model"):
        phiquant.generate(MistralForCausalLM(config), prompt())
