"""Draw docs/figures/remainder.svg: how the widths of remainders follow from sub-cells.

python docs/figures/remainder.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch

from phiquant.codec import Layout, cells, remainder

LAYOUT = Layout(64, exponent=-10, stored_dtype=torch.bfloat16)
SCALE, BEND, CODES = 0.166015625, 5, range(158, 168)


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "phiquant", "font.size": 9})
    codes = torch.tensor([list(CODES)])
    scale, bend = torch.tensor([[SCALE]]), torch.tensor([[BEND]])
    within = remainder.subcells(codes, scale, bend, LAYOUT, torch.bfloat16)
    edges = cells.edges(torch.tensor([*CODES, CODES[-1] + 1]), bend[0], LAYOUT, 4) * SCALE
    figure, axes = plt.subplots(figsize=(9, 2.2))
    for i, code in enumerate(CODES):
        left, right = edges[i].item(), edges[i + 1].item()
        axes.axvspan(left, right, color="C0" if code % 2 else "C1", alpha=0.18, linewidth=0)
        first, count = within.first[0, i].item(), within.count[0, i].item()
        floats = torch.arange(first, first + count).short().view(torch.bfloat16).float()
        axes.plot(floats, torch.zeros(count), "|", color="black", markersize=16)
        middle, width = (left + right) / 2, within.width[0, i].item()
        axes.text(middle, 0.55, f"{count} floats", ha="center", fontsize=7)
        axes.text(middle, -0.7, f"{width} bits", ha="center", weight="bold", fontsize=8)
    axes.axvline(2**-5, color="grey", linestyle=":", linewidth=1)
    axes.text(2**-5, 1.05, "bf16 numbers lie twice as far apart from here on", fontsize=7)
    axes.set(xlim=(edges[0].item(), edges[-1].item()), ylim=(-1, 1), yticks=[], xlabel="weight")
    axes.spines[["top", "left", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
