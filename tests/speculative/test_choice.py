"""Drawn tokens have the model's distribution, whatever the draft's is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LogitsProcessorList
from transformers.generation import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import phiquant
from phiquant.speculative.choice import Greedy, Sampling
from tests.speculative.support import llama, prompt

DRAWS = 20000
# The chi-square that one in 10^6 draws exceeds, about: mean + 5 standard deviations and some.


def bound(freedom: int) -> float:
    return freedom + 5.5 * (2 * freedom) ** 0.5 + 10


def chi_square(counts: Tensor, expected: Tensor) -> float:
    kept = expected > 5
    rest = torch.stack([counts[~kept].sum(), expected[~kept].sum()])
    found = ((counts - expected)[kept].square() / expected[kept]).sum()
    return float(found + (rest[0] - rest[1]).square() / rest[1].clamp_min(1))


def settings() -> list[dict[str, object]]:
    return [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 6, "top_p": 0.8}]


@pytest.mark.parametrize("options", settings())
def test_probabilities_are_those_of_transformers(options: dict[str, float]) -> None:
    logits = torch.randn(5, 12) * 3
    steps = LogitsProcessorList([TemperatureLogitsWarper(float(options.get("temperature", 1.0)))])
    if "top_k" in options:
        steps.append(TopKLogitsWarper(int(options["top_k"])))
    if "top_p" in options:
        steps.append(TopPLogitsWarper(options["top_p"]))
    wanted = steps(torch.zeros(5, 1, dtype=torch.long), logits).softmax(-1)
    assert torch.allclose(Sampling(**options).probabilities(logits), wanted, atol=1e-6)


@pytest.mark.parametrize("options", settings())
@pytest.mark.parametrize("drafted", [0, 1, 3])
def test_settled_tokens_have_the_wanted_distribution(
    options: dict[str, float], drafted: int
) -> None:
    """Every sequence of the batch is a draw; p and q differ much, the same in every column."""
    words = 8
    p = torch.randn(words) * 2
    q = p * 0.5 + torch.randn(words)
    choice = Sampling(**options, generator=torch.Generator().manual_seed(3))
    block = [torch.zeros(DRAWS, 1, dtype=torch.long)]
    for _ in range(drafted):
        block.append(choice.drafted(q.expand(DRAWS, words)))
    logits = p.expand(DRAWS, drafted + 1, words)
    verdict = choice.settle(torch.cat(block, 1), logits, lambda columns: p)
    wanted = choice.probabilities(p)
    for place in range(drafted + 1):  # tokens are independent here: each has the distribution p
        there = [tokens[place] for tokens in verdict.tokens if len(tokens) > place]
        counts = torch.bincount(torch.tensor(there), minlength=words).float()
        assert len(there) > DRAWS // 50
        assert chi_square(counts, wanted * len(there)) < bound(words)
        assert not counts[wanted == 0].any()


@pytest.mark.parametrize("drafted", [0, 2])
def test_tokens_that_are_given_change_no_distribution(drafted: int) -> None:
    """As what a text repeats: certain of themselves, likely or not."""
    words, p = 8, torch.randn(8) * 2
    choice = Sampling(generator=torch.Generator().manual_seed(4))
    block = [torch.zeros(DRAWS, 1, dtype=torch.long)]
    for _ in range(drafted):
        block.append(choice.drafted((p * 0.5).expand(DRAWS, words)))
    for token in (int(p.argmax()), 3):
        block.append(choice.given(torch.full((DRAWS, 1), token)))
    logits = p.expand(DRAWS, len(block), words)
    verdict = choice.settle(torch.cat(block, 1), logits, lambda columns: p)
    wanted = choice.probabilities(p)
    for place in range(len(block)):
        there = [tokens[place] for tokens in verdict.tokens if len(tokens) > place]
        counts = torch.bincount(torch.tensor(there), minlength=words).float()
        assert chi_square(counts, wanted * len(there)) < bound(words)


@pytest.mark.slow
def test_generated_tokens_have_the_distribution_of_the_model_alone() -> None:
    """Three tokens of a tiny model: all 6^3 texts, against their exact probabilities."""
    words = 6
    model: LlamaForCausalLM = phiquant.view(llama(words=words), "deviation")
    ids = prompt(3, words=words)
    exact = torch.zeros(words, words, words)
    with torch.inference_mode():
        for a in range(words):
            for b in range(words):
                text = torch.cat([ids, torch.tensor([[a, b]])], 1)
                p = (model(text).logits[0, -3:] / 3).softmax(-1)
                exact[a, b] = p[0, a] * p[1, b] * p[2]
    generator, rows, counts = torch.Generator().manual_seed(0), 500, torch.zeros(words**3)
    for _ in range(12):
        found = phiquant.generate(
            model, ids.expand(rows, -1), max_new_tokens=3, do_sample=True, temperature=3.0,
            draft_tokens=2, generator=generator,
        )[:, 3:]  # fmt: skip
        numbers = found @ torch.tensor([words * words, words, 1])
        counts += torch.bincount(numbers, minlength=words**3)
    assert chi_square(counts, exact.flatten() * counts.sum()) < bound(words**3)


def test_draws_repeat_themselves() -> None:
    model, ids = llama(), prompt()

    def draw(seed: int) -> Tensor:
        return phiquant.generate(
            model, ids, max_new_tokens=20, do_sample=True, temperature=2.0, draft_tokens=3,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_tie_is_decided_by_a_pass_of_one_token() -> None:
    logits = torch.tensor([[[5.0, 4.99, 0.0], [9.0, 1.0, 0.0]]])
    asked: list[list[int]] = []

    def decide(columns: list[int]) -> Tensor:
        asked.append(columns)
        return torch.tensor([[0.0, 1.0, 0.0]])

    block = torch.tensor([[2, 1]])
    assert Greedy(0.01).settle(block, logits, decide) == ([[1, 0]], 1)
    assert Greedy(0.0).settle(block, logits, decide) == ([[0]], 0)
    assert asked == [[0]]
