"""How many of SmolLM2's greedy continuations stay the same, token for token.

Compressed weights are decoded to fp32, so every difference is the format's and none the kernel's.
Embeddings, tied to the output head, keep at least 4 deviation bits, as `quantize_` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.matrices import matrices, replaced
from benchmarks.methods import Method, decode_model, label, peer, phi
from benchmarks.reporting import Verdict, table
from benchmarks.zoo import smollm2

TOKENS = 64
PROMPTS = (
    "What is the golden ratio?",
    "Explain why the sky is blue.",
    "Write a short poem about the sea.",
    "How do I bake a loaf of bread?",
    "What is the capital of France, and what is it known for?",
    "Tell me a story about a fox and a crow.",
    "What is the difference between a crocodile and an alligator?",
    "Give me three tips for learning a new language.",
    "Who wrote Pride and Prejudice?",
    "What is photosynthesis?",
    "Write a Python function that reverses a string.",
    "Describe a rainy day in autumn.",
    "Why do cats purr?",
    "What are the planets of the solar system?",
    "How does a bicycle stay upright?",
    "Write a polite email asking for a day off.",
    "What causes the tides?",
    "Summarize the plot of Romeo and Juliet.",
    "What is a prime number?",
    "How can I sleep better at night?",
)
# Grid, index bits, deviation bits, and the depths at which a model of these is read.
_TIERS: tuple[tuple[str, int, int, tuple[int, ...]], ...] = (
    ("phi", 4, 4, (0, 4)),
    ("phi", 4, 2, (2,)),
    ("phi", 4, 8, (8,)),
    ("phi", 5, 8, (0, 4, 8)),
    ("golden", 4, 4, (0, 4)),
    ("golden", 5, 8, (0, 4, 8)),
)
_BAR = label("phi 5+8", 8), 19


def _methods() -> Iterator[tuple[Method, Method]]:
    """Methods, and what embeddings go through beside each."""
    eight = peer("int8 g64")
    yield peer("NF4 absmax g64"), eight
    yield eight, eight
    for grid, index, deviation, depths in _TIERS:
        config: dict[str, Any] = {"index_bits": index, "grid": grid}
        name = f"{grid} {index}+{deviation}"
        wide = max(4, deviation)
        yield (
            phi(name, depths, deviation_bits=deviation, **config),
            phi(name, (wide,), deviation_bits=wide, **config),
        )


@torch.inference_mode()
def generate(model: Any) -> Tensor:
    """Greedy continuations of `PROMPTS`, int64 [20, 64]; an end mark does not end them."""
    tokenizer = smollm2.tokenizer()
    tokenizer.padding_side = "left"
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    rendered = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
    )
    return output[:, inputs["input_ids"].shape[1] :]


def measure(progress: Callable[[str], None] = print) -> dict[str, dict[str, float]]:
    """Every tier: bits a weight, identical continuations, mean tokens before the first change."""
    model = smollm2.load()
    found = matrices(model, embeddings=True)
    original = generate(model)
    total = sum(matrix.weight.numel() for matrix in found)
    results = {}
    for method, wide in _methods():
        for key, decoded in decode_model(found, method, wide).items():
            progress(f"smollm2: {key}")
            with replaced(found, {name: tier.weight for name, tier in decoded.items()}):
                same = generate(model) == original
            bits = sum(decoded[m.name].bits * m.weight.numel() for m in found) / total
            results[key] = {
                "bits": bits,
                "identical": int(same.all(1).sum()),
                "of": len(PROMPTS),
                "tokens_before_change": same.long().cumprod(1).sum(1).float().mean().item(),
            }
    progress("")
    return results


def summary(results: dict[str, dict[str, float]]) -> str:
    """The table, fewest bits first."""
    rows = [
        [key, r["bits"], f"{r['identical']}/{r['of']}", r["tokens_before_change"]]
        for key, r in sorted(results.items(), key=lambda item: item[1]["bits"])
    ]
    header = ["SmolLM2, greedy", "bits", "identical", f"tokens before change (of {TOKENS})"]
    return table(header, rows)


def verdicts(results: dict[str, dict[str, float]]) -> list[Verdict]:
    """The bar: the research note's own depth leaves nearly every continuation unchanged."""
    key, bar = _BAR
    claim = f"{key}: continuations identical to fp32, of {len(PROMPTS)}"
    return [Verdict(claim, bar, results[key]["identical"], "continuations")]
