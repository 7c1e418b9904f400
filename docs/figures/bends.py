"""Draw docs/figures/bends.svg: the eight bends of the phi-grid and the levels of 4 index bits.

python docs/figures/bends.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch

from phiquant.grid import BENDS, Grid

LABELS = ("φ⁻⁴", "φ⁻³", "φ⁻¹/2", "φ⁻²", "φ⁻² + φ⁻⁶", "1/2", "1 − φ⁻² − φ⁻⁶", "1 − φ⁻⁵")


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "phiquant", "font.size": 9})
    grid = Grid("phi", 4)
    position = torch.linspace(-grid.half + 0.5, grid.half + 0.5, 200)
    index = torch.arange(-grid.half + 1, grid.half + 1)
    figure, (curves, combs) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(1, 1.2))
    colours = mpl.colormaps["viridis"](torch.linspace(0, 0.9, len(BENDS)).tolist())
    for bend, colour in enumerate(colours):
        number = torch.tensor(bend)
        curves.plot(position, grid.value(position, number), color=colour, label=LABELS[bend])
        levels = grid.value(index.float(), number)
        combs.plot(levels, torch.full_like(levels, bend), "|", color=colour, markersize=14)
    curves.set(xlabel="position p", ylabel="level f(p)", title="eight bends B, 4 index bits")
    curves.legend(title="B", fontsize=7, title_fontsize=7)
    combs.set(xlabel="level f(k)", title="the 16 levels of the index plane")
    combs.set_yticks(range(len(BENDS)), LABELS)
    combs.invert_yaxis()
    for axes in (curves, combs):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
