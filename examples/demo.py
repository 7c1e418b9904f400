"""From nothing to a compressed model: SmolLM2 (or --model) at three tiers, and MiniLM's quality.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tabulate import tabulate
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import phiquant
from benchmarks.zoo import minilm, smollm2, texts
from benchmarks.zoo.metrics import kl_divergence, perplexity

TIERS = (("4.25", 0), ("8.25", 4), ("12.25", 8))
PROMPTS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "Explain what a prime number is.",
)


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
    for name, deviation_bits in TIERS:
        model = _load(folder)
        report = phiquant.quantize_(model, phiquant.PhiConfig(deviation_bits=deviation_bits))
        print(str(report).partition("\n")[0], flush=True)
        samples[name] = _run(model, tokenizer, ids, options.new_tokens)
        rows.append(_row(name, report.bits_per_weight, report.stored_bytes, samples[name], before))
    print(f"\n{folder}; perplexity on {text.name}, {options.tokens} tokens\n")
    print(tabulate(rows, headers="keys", floatfmt="g"))
    if not options.model:
        print("SmolLM2's weights sit on a 4-bit lattice: its KL flatters, see MiniLM below")
    _print_texts(tokenizer, samples)
    quality = _minilm_rows()
    print("\nall-MiniLM-L6-v2, natural fp32 weights\n")
    print(tabulate(quality, headers="keys", floatfmt="g"))
    if options.json:
        result = {"command": sys.argv, "model": rows, "minilm": quality}
        Path(options.json).write_text(json.dumps(result, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a causal language model's folder or hub name")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of text for perplexity")
    parser.add_argument("--new-tokens", type=int, default=48, help="tokens to generate a prompt")
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
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _tokens(tokenizer: Any, text: str, count: int) -> Tensor:
    ids = tokenizer(text[: 8 * count], add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[:count])


def _run(model: Any, tokenizer: Any, ids: Tensor, new_tokens: int) -> Outcome:
    """Logits of a text, and greedy generations with their speed."""
    with torch.inference_mode():
        logits = smollm2.logits(model, ids[:-1])
    loss = torch.nn.functional.cross_entropy(logits, ids[1:]).item()
    prompts = [_prompt(tokenizer, text) for text in PROMPTS]
    _generate(model, tokenizer, prompts[0], 2)  # warm up
    start = time.perf_counter()
    generations = [_generate(model, tokenizer, prompt, new_tokens) for prompt in prompts]
    seconds = time.perf_counter() - start
    speed = sum(map(len, generations)) / seconds
    return Outcome(logits, perplexity(loss), generations, speed)


def _prompt(tokenizer: Any, text: str) -> Tensor:
    if tokenizer.chat_template is None:
        return tokenizer(text, return_tensors="pt")["input_ids"]
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]


def _generate(model: Any, tokenizer: Any, prompt: Tensor, count: int) -> list[int]:
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=padding,
    )
    return output[0, prompt.shape[1] :].tolist()


def _row(name: str, bits: float, size: int, now: Outcome, before: Outcome) -> dict[str, Any]:
    same = sum(_common(a, b) for a, b in zip(now.generations, before.generations, strict=True))
    total = sum(map(len, before.generations))
    return {
        "bits": name,
        "bits/weight": round(bits, 2),
        "MB": round(size / 1e6, 1),
        "perplexity": round(now.perplexity, 3),
        "KL to original": float(f"{kl_divergence(before.logits, now.logits):.2e}"),
        "tokens/s": round(now.tokens_per_second, 1),
        "identical tokens": f"{same}/{total}",
    }


def _common(a: list[int], b: list[int]) -> int:
    """Tokens until the first difference: after it the texts go separate ways."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def _print_texts(tokenizer: Any, samples: dict[str, Outcome]) -> None:
    for i, prompt in enumerate(PROMPTS):
        print(f"\n> {prompt}")
        for name, outcome in samples.items():
            written = tokenizer.decode(outcome.generations[i], skip_special_tokens=True)
            print(f"  {name:>8}: {' '.join(written.split())}")


def _minilm_rows() -> list[dict[str, Any]]:
    rows = []
    for name, deviation_bits in TIERS:
        model = minilm.load()
        report = phiquant.quantize_(model, phiquant.PhiConfig(deviation_bits=deviation_bits))
        errors = [layer.relative_error for layer in report.compressed]
        metrics = minilm.evaluate(model, 200)
        rows.append(
            {
                "bits": name,
                "bits/weight": round(report.bits_per_weight, 2),
                "MB": round(report.stored_bytes / 1e6, 1),
                "mean relative error": float(f"{sum(errors) / len(errors):.2e}"),
                **{key: round(value, 6) for key, value in metrics.items()},
            }
        )
    return rows


if __name__ == "__main__":
    main()
