"""Draw docs/figures/planes_read.svg: planes that SmolLM2 reads for each token of a text.

PYTHONPATH=. python docs/figures/planes_read.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch

import phiquant
from benchmarks.speculators import prompts
from benchmarks.zoo import smollm2
from phiquant.speculative import Statistics

PROMPT, TOKENS, DRAFTED = 4, 48, 4


def main() -> None:
    torch.set_num_threads(2)
    mpl.rcParams.update({"svg.hashsalt": "phiquant", "font.size": 8})
    model = smollm2.load().bfloat16().float()
    phiquant.quantize_(model, phiquant.PhiConfig(exact=True), progress=False)
    ids, told = prompts(PROMPT + 1)[PROMPT], Statistics()
    found = phiquant.generate(
        model,
        ids,
        max_new_tokens=TOKENS,
        eos_token_id=[],
        draft_tokens=DRAFTED,
        statistics=told,
        draft=phiquant.draft(model),
    )[0, ids.shape[1] + 1 :]  # the first token is the prompt's
    tokenizer = smollm2.tokenizer()
    words = [tokenizer.decode([token]).replace("\n", "⏎").replace("$", r"\$") for token in found]
    figure, axes = plt.subplots(figsize=(10, 3))
    place = 0
    for number, each in enumerate(told.rounds):
        indices = each.passes * told.shallow.planes / each.tokens
        deep = (1 + each.ties) * told.deep.planes / each.tokens
        where = range(place, place + each.tokens)
        shade = 0.35 if number % 2 else 0.6
        axes.bar(where, indices, color=mpl.colormaps["Greens"](shade), width=0.95)
        axes.bar(where, deep, bottom=indices, color=mpl.colormaps["Purples"](shade), width=0.95)
        place += each.tokens
    axes.axhline(told.deep.planes, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(told.planes_per_token, color="black", linewidth=0.8)
    axes.text(place - 0.4, told.deep.planes, "alone", va="bottom", ha="right")
    axes.text(place - 0.4, told.planes_per_token, "mean", va="top", ha="right")
    axes.set_xticks(range(len(words)), words, rotation=90)
    axes.set(ylabel="planes read", xlim=(-0.6, place - 0.4))
    axes.set_title("green: drafted from indices; violet: verified, each round shared by its tokens")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
