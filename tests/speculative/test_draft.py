"""A draft holds nothing of its own, and transformers' assisted generation takes it as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phiquant
from phiquant.speculative.runner import runner_of
from tests.speculative.support import alone, llama, plane_addresses, prompt


def test_a_draft_holds_no_memory_of_its_own() -> None:
    model = llama()
    assert plane_addresses(phiquant.draft(model)) <= plane_addresses(model)


def test_a_draft_reads_indices_but_of_what_is_tied_to_a_table() -> None:
    model = llama()
    draft = phiquant.draft(model)
    inner = draft.model.layers[0].mlp.up_proj.weight
    assert (inner.deviation_bits, inner.activation) == (0, "int8")
    assert draft.lm_head.weight.deviation_bits == 4
    assert not draft.lm_head.weight.is_exact
    assert draft.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.is_exact
    assert phiquant.draft(llama(tie_word_embeddings=False)).lm_head.weight.deviation_bits == 0


def test_a_draft_may_read_deviations() -> None:
    model = llama()
    draft = phiquant.draft(model, tier="deviation")
    for weight in (draft.model.layers[0].mlp.up_proj.weight, draft.lm_head.weight):
        assert (weight.deviation_bits, weight.is_exact, weight.activation) == (4, False, "bf16")
    assert plane_addresses(draft) <= plane_addresses(model)
    with pytest.raises(ValueError, match="nothing is less deep"):
        phiquant.draft(draft, tier="deviation")
    with pytest.raises(ValueError, match="tier"):
        phiquant.draft(model, tier="deep")


@pytest.mark.parametrize(("tier", "wanted"), [("exact", 4), ("deviation", 0)])
def test_what_drafts_by_default_is_less_deep_by_one_plane(tier: str, wanted: int) -> None:
    model = phiquant.view(llama(tie_word_embeddings=False), tier)
    draft = runner_of(model).draft(model)
    assert draft.model.layers[0].mlp.up_proj.weight.deviation_bits == wanted
    assert not draft.lm_head.weight.is_exact


def test_a_pattern_leaves_the_head() -> None:
    draft = phiquant.draft(llama(), r"(?!lm_head)", activation=None)
    assert draft.lm_head.weight.is_exact
    assert draft.model.layers[0].mlp.up_proj.weight.deviation_bits == 0
    assert draft.model.layers[0].mlp.up_proj.weight.activation is None


def test_a_draft_of_a_draft_is_refused() -> None:
    draft = phiquant.draft(llama(tie_word_embeddings=False), activation=None)
    with pytest.raises(ValueError, match="nothing is less deep"):
        phiquant.draft(draft)


def test_a_plain_model_is_refused() -> None:
    with pytest.raises(ValueError, match="quantize_"):
        phiquant.draft(nn.Linear(64, 64))


@pytest.mark.parametrize("tier", ["exact", "deviation"])
def test_assisted_generation_says_what_the_model_says(tier: str) -> None:
    model = phiquant.view(llama(), tier)
    for seed in range(3):
        ids = prompt(seed=seed)
        assisted = alone(model, ids, 24, assistant_model=phiquant.draft(model))
        assert torch.equal(assisted, alone(model, ids, 24))


def test_assisted_sampling_runs() -> None:
    model, ids = llama(), prompt()
    torch.manual_seed(0)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=16,
        do_sample=True,
        assistant_model=phiquant.draft(model),
    )
    assert out.shape == (1, 7 + 16)
