"""Bends and the size of the exact tier: bits a weight of bf16 originals next to both lossy errors.

    python -m benchmarks.exact_bends --groups 128

4 index and 4 deviation bits, groups of 64, offsets not counted. A group takes the bend and sign
that minimise 2 log2(index error) + log2(deviation error) + price * remainder bits. The floor is
8 bits for sign and mantissa and the entropy of the exponents.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.bends import MODELS, PHI, sampled_layers
from phiquant.codec.ranks import first_rank
from phiquant.codec.remainder import bit_length

HALF, DEPTH, LOSSY_BITS = 8, 4, 8.25
MIDDLE = PHI**-2 + PHI**-6
CLOSE = (PHI**-4, PHI**-3, 0.5 / PHI, PHI**-2, MIDDLE, 0.5, 1 - MIDDLE)
SETS: dict[str, tuple[float, ...]] = {
    "even": (0, PHI**-4, PHI**-3, PHI**-2, 0.5, 1 / PHI, 1 - PHI**-3, 1 - PHI**-5),
    "close, phi^-1 last": (*CLOSE, 1 / PHI),
    "close, 1 - phi^-3 last": (*CLOSE, 1 - PHI**-3),
    "close, 1 - phi^-5 last (format version 1)": (*CLOSE, 1 - PHI**-5),
    "close, 1 - phi^-6 last": (*CLOSE, 1 - PHI**-6),
}
PRICES = (0.0, 1 / 32, 1 / 4)


@dataclass(frozen=True)
class Trials:
    """What every bend and sign does to every group, fp64 ``[n, 2 * bends]``, and its layer."""

    index: Tensor
    deviation: Tensor
    bits: Tensor
    layer: Tensor
    energy: Tensor
    floor: float


def level(position: Tensor, bend: float) -> Tensor:
    line, cubic = torch.tensor([(1 - bend) / HALF, bend / HALF**3]).unbind()
    return (position * position * cubic + line) * position


def trial(groups: Tensor, bend: float) -> Tensor:
    """(index error, deviation error, remainder bits) of fp32 ``groups``, ``[3, n]``."""
    ends = level(torch.tensor([HALF + 0.125, HALF - 0.5]), bend)
    needed = torch.maximum(groups.amax(-1) / ends[0], -groups.amin(-1) / ends[1]).clamp(min=2**-24)
    # 7 mantissa bits, rounded up, and one step more where the division rounded down.
    bits = (needed.view(torch.int32) + 0xFFFF) & ~0xFFFF
    scale = bits.view(torch.float32)
    short = (scale * ends[0] < groups.amax(-1)) | (scale * ends[1] < -groups.amin(-1))
    scale = (bits + (short.int() << 16)).view(torch.float32).unsqueeze(-1)
    places = torch.arange((2 * HALF << DEPTH) + 1) * 0.5**DEPTH - (HALF - 0.5)
    edges = level(places, bend) * scale
    code = torch.searchsorted(edges[:, 1:-1].contiguous(), groups.contiguous(), right=True)
    centre = level((code >> DEPTH).float() - (HALF - 1), bend) * scale
    middle = level((code + 0.5) * 0.5**DEPTH - (HALF - 0.5), bend) * scale
    below = places[code] < 0
    lower, upper = (edges.gather(1, code + step) for step in (0, 1))
    inner, outer = torch.where(below, upper, lower).abs(), torch.where(below, lower, upper).abs()
    floats = first_rank(outer, below, torch.bfloat16) - first_rank(
        inner, below & (inner > 0), torch.bfloat16
    )
    width = bit_length((floats - 1).clamp(min=0)).double().sum(-1)
    errors = [(tier - groups).double().square().sum(-1) for tier in (centre, middle)]
    return torch.stack([*errors, width])


def measure(name: str, bends: Sequence[float], count: int) -> Trials:
    """All bends on groups sampled from every layer of a model, as bf16."""
    tried, layers, energy, exponents = [], [], [], []
    for number, layer in enumerate(sampled_layers(name, count)):
        groups = layer.bfloat16().float()
        both = [trial(signed, bend) for bend in bends for signed in (groups, -groups)]
        tried.append(torch.stack(both, dim=-1))
        layers.append(torch.full((len(groups),), number))
        energy.append(groups.double().square().sum())
        exponents.append(groups.view(torch.int32).flatten() >> 23 & 255)
    share = torch.bincount(torch.cat(exponents).long()).double()
    share = share[share > 0] / share.sum()
    floor = 8 - (share * share.log2()).sum().item()
    return Trials(*torch.cat(tried, dim=1), torch.cat(layers), torch.stack(energy), floor)


def outcome(trials: Trials, price: float) -> tuple[float, float, float]:
    """(index dB, deviation dB, bits a weight) of the best trials: means over layers and weights."""
    tiny = 1e-300
    score = 2 * (trials.index + tiny).log2() + (trials.deviation + tiny).log2()
    best = (score + price * trials.bits).argmin(-1, keepdim=True)
    ratios = []
    for tier in (trials.index, trials.deviation):
        noise = torch.zeros_like(trials.energy)
        noise.index_add_(0, trials.layer, tier.gather(-1, best).squeeze(-1))
        ratios.append(10 * (trials.energy / noise).log10().mean().item())
    return *ratios, LOSSY_BITS + trials.bits.gather(-1, best).mean().item() / 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--groups", type=int, default=128, help="groups sampled from each layer")
    arguments = parser.parse_args()
    print("index dB / 8.25-bit dB / bits of the exact tier (above the floor)")
    for name, bends in SETS.items():
        print(f"{name}: {', '.join(f'{bend:.3f}' for bend in bends)}")
        trials = {model: measure(model, bends, arguments.groups) for model in MODELS}
        for price in PRICES:
            row = [
                f"{model} {a:.2f} / {b:.2f} / {bits:.3f} (+{bits - trials[model].floor:.2f})"
                for model, (a, b, bits) in ((m, outcome(t, price)) for m, t in trials.items())
            ]
            print(f"  price {price:.4f}  {'  '.join(row)}", flush=True)


if __name__ == "__main__":
    main()
