"""From nothing to a compressed model: SmolLM2 (or --model) at three tiers, and MiniLM's quality.

Each model is compressed once, exactly, and then read at every tier.

    make demo
    make demo MODEL=<folder or hub name of a causal language model>

Every number in the tables is measured in this run.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tabulate import tabulate
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import phiquant
from benchmarks.generation import PROMPTS
from benchmarks.zoo import minilm, smollm2, texts
from benchmarks.zoo.metrics import kl_divergence, perplexity

TIERS = ("index", "deviation", "exact")
LINEAR_LAYERS = r"(?!.*(embed|lm_head))"  # embeddings and heads are worth 8.25 bits


@dataclass
class Outcome:
    """What one model did: logits and generations are compared with the original's."""

    logits: Tensor
    perplexity: float
    generations: list[list[int]]
    tokens_per_second: float


def main() -> None:
    options = _options()
    _print_setting(options)
    folder = options.model or str(smollm2.save())
    print(f"loading {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = texts.public_text()
    ids = _tokens(tokenizer, text.body, options.tokens + 1)
    original = _load(folder)
    size = sum(p.nbytes for p in original.parameters())
    before = _run(original, tokenizer, ids, options.new_tokens)
    del original
    rows = [_row("original", 8 * torch.float32.itemsize, size, before, before)]
    samples = {"original": before}
    model = _load(folder)
    print(phiquant.quantize_(model, phiquant.PhiConfig(exact=True)).summary)
    print(phiquant.verify(model), flush=True)
    for tier in TIERS:
        with _at(model, tier):
            samples[tier] = _run(model, tokenizer, ids, options.new_tokens)
            rows.append(_row(tier, *_size(model), samples[tier], before))
    print(f"\n{folder}; perplexity on {text.name}, {options.tokens} tokens\n")
    print(tabulate(rows, headers="keys", floatfmt="g"))
    if not options.model:
        print("SmolLM2's weights sit on a 4-bit lattice: its KL flatters, see MiniLM below")
    _print_texts(tokenizer, samples)
    quality = _minilm_rows()
    print("\nall-MiniLM-L6-v2, natural weights, cast to bf16\n")
    print(tabulate(quality, headers="keys", floatfmt="g"))
    if options.json:
        result = {"command": sys.argv, "model": rows, "minilm": quality}
        Path(options.json).write_text(json.dumps(result, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a causal language model's folder or hub name")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of text for perplexity")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens to generate a prompt")
    parser.add_argument("--json", help="write the tables to this file")
    return parser.parse_args()


def _print_setting(options: argparse.Namespace) -> None:
    kernels = "compiled" if phiquant.ops.compiled else "reference (slow: no C++ compiler)"
    print(
        f"phiquant {phiquant.__version__} ({kernels} kernels), torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    print(f"command: {' '.join(sys.argv)}")


def _load(folder: str) -> Any:
    """As bf16, which most checkpoints are, to run in fp32, which a CPU is quick at."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float().eval()


def _tokens(tokenizer: Any, text: str, count: int) -> Tensor:
    ids = tokenizer(text[: 8 * count], add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[:count])


@contextmanager
def _at(model: Any, tier: str) -> Iterator[None]:
    """The model at a tier; its embeddings never at less than the deviation's."""
    everywhere = "deviation" if tier == "index" else tier
    with phiquant.at_precision(model, everywhere):
        if tier != "index":
            yield
            return
        with phiquant.at_precision(model, tier, LINEAR_LAYERS):
            yield


def _size(model: torch.nn.Module) -> tuple[float, int]:
    """Bits a compressed weight, and bytes of all parameters, as the model is read now."""
    parameters = list(model.parameters())
    compressed = [p for p in parameters if isinstance(p, phiquant.PhiTensor)]
    stored = sum(p.stored_bytes for p in compressed)
    plain = sum(p.nbytes for p in parameters if not isinstance(p, phiquant.PhiTensor))
    return stored * 8 / sum(p.numel() for p in compressed), stored + plain


def _run(model: Any, tokenizer: Any, ids: Tensor, new_tokens: int) -> Outcome:
    """Logits of a text, greedy generations of all prompts at once, and the speed of one alone."""
    with torch.inference_mode():
        logits = smollm2.logits(model, ids[:-1])
    loss = torch.nn.functional.cross_entropy(logits, ids[1:]).item()
    generations = _generate(model, tokenizer, PROMPTS, new_tokens)
    start = time.perf_counter()
    alone = _generate(model, tokenizer, PROMPTS[:1], new_tokens)
    speed = len(alone[0]) / (time.perf_counter() - start)
    return Outcome(logits, perplexity(loss), generations, speed)


def _text(tokenizer: Any, prompt: str) -> str:
    if tokenizer.chat_template is None:
        return prompt
    chat = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def _generate(model: Any, tokenizer: Any, prompts: Sequence[str], count: int) -> list[list[int]]:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = 0
    texts_of = [_text(tokenizer, prompt) for prompt in prompts]
    given = tokenizer(texts_of, return_tensors="pt", padding=True, padding_side="left")
    output = model.generate(
        given["input_ids"],
        attention_mask=given["attention_mask"],
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return output[:, given["input_ids"].shape[1] :].tolist()


def _row(name: str, bits: float, size: int, now: Outcome, before: Outcome) -> dict[str, Any]:
    pairs = list(zip(now.generations, before.generations, strict=True))
    same = sum(_common(a, b) for a, b in pairs)
    total = sum(map(len, before.generations))
    return {
        "tier": name,
        "bits/weight": round(bits, 2),
        "MB": round(size / 1e6, 1),
        "perplexity": round(now.perplexity, 3),
        "KL to original": float(f"{kl_divergence(before.logits, now.logits):.2e}"),
        "tokens/s": round(now.tokens_per_second, 1),
        "identical tokens": f"{same}/{total}",
        "identical texts": f"{sum(a == b for a, b in pairs)}/{len(pairs)}",
    }


def _common(a: list[int], b: list[int]) -> int:
    """Tokens until the first difference: after it the texts go separate ways."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def _print_texts(tokenizer: Any, samples: dict[str, Outcome]) -> None:
    for i, prompt in enumerate(PROMPTS[:3]):
        print(f"\n> {prompt}")
        for name, outcome in samples.items():
            written = tokenizer.decode(outcome.generations[i], skip_special_tokens=True)
            print(f"  {name:>8}: {' '.join(written.split())}")


def _minilm_rows() -> list[dict[str, Any]]:
    model, rows = minilm.load().bfloat16().float(), []
    phiquant.quantize_(model, phiquant.PhiConfig(exact=True))
    for tier in TIERS:
        with _at(model, tier):
            bits, size = _size(model)
            metrics = minilm.evaluate(model, 200)
        rows.append(
            {
                "tier": tier,
                "bits/weight": round(bits, 2),
                "MB": round(size / 1e6, 1),
                **{key: round(value, 6) for key, value in metrics.items()},
            }
        )
    return rows


if __name__ == "__main__":
    main()
