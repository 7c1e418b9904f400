"""LoRA on compressed bases and on the original, on one real task with the same seed.

    PYTHONPATH=. python -m benchmarks.lora [--steps N]

MiniLM learns to find the headword of a definition of the Jargon File. Every eighth entry is kept
from training; the loss is the cross-entropy of finding each of their headwords among all of them.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

import phiquant
from benchmarks.reporting import table
from benchmarks.zoo import minilm, texts
from phiquant import PhiConfig

BASES: dict[str, PhiConfig | None] = {
    "original fp32": None,
    "8.25 bits": PhiConfig(),
    "4.25 bits": PhiConfig(deviation_bits=0),
}
BATCH, RATE, SHARPNESS, TOKENS = 16, 2e-3, 20.0, 32
Pair = tuple[str, str]


@dataclass(frozen=True)
class Result:
    """Losses on what was kept from training, in nats; ``merged`` with the adapter in the base."""

    before: float
    after: float
    merged: float
    seconds_a_step: float


def pairs() -> tuple[list[Pair], list[Pair]]:
    """Headwords with their definitions, to learn from and to judge by. Raises `MissingText`."""
    entries = texts.jargon()
    return [e for i, e in enumerate(entries) if i % 8], entries[::16]


def run(config: PhiConfig | None, steps: int, judged: int = 128) -> Result:
    """Train an adapter of rank 8 on MiniLM, compressed by ``config`` or left as it is."""
    learned, kept = pairs()
    kept = kept[:judged]
    model: nn.Module = minilm.load()
    if config is not None:
        phiquant.quantize_(model, config, progress=False)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["query", "key", "value"]))
    before, start = held_out(model, kept), time.perf_counter()
    train(model, batches(learned, steps))
    seconds = (time.perf_counter() - start) / steps
    after = held_out(model, kept)
    return Result(before, after, held_out(model.merge_and_unload(), kept), seconds)


def batches(learned: list[Pair], steps: int) -> Iterator[list[Pair]]:
    """The same for every base."""
    chance = random.Random(0)
    for _ in range(steps):
        yield chance.sample(learned, BATCH)


def train(model: nn.Module, chosen: Iterator[list[Pair]]) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    for batch in chosen:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def held_out(model: nn.Module, kept: list[Pair]) -> float:
    return loss(model.eval(), kept).item()


def loss(model: nn.Module, batch: list[Pair]) -> Tensor:
    """Each definition has to find its own headword among those of the batch."""
    headwords, definitions = zip(*batch, strict=True)
    scores = SHARPNESS * embed(model, definitions) @ embed(model, headwords).T
    return functional.cross_entropy(scores, torch.arange(len(batch)))


def embed(model: nn.Module, sentences: tuple[str, ...]) -> Tensor:
    """Unit mean-pooled embeddings, fp32 [len(sentences), 384], with gradients."""
    inputs: Any = minilm.tokenizer()(
        list(sentences), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    rows = []
    for name, config in BASES.items():
        result = run(config, steps)
        losses = (result.before, result.after, result.merged)
        rows.append([name, *(f"{value:.3f}" for value in losses), f"{result.seconds_a_step:.2f}"])
        print(rows[-1], flush=True)
    print(f"{steps} steps, batches of {BATCH}")
    print(table(["base", "before", "after", "merged", "s/step"], rows))


if __name__ == "__main__":
    main()
