"""Other engines on a GPU: named where they are missing, and modules as contenders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks import cuda_peers
from benchmarks.contenders import Contender, build, error
from benchmarks.cuda_contenders import cublas
from benchmarks.cuda_peers import bitsandbytes_nf4, gemlite, humming, of_module, tinygemm

Builder = Callable[[Tensor], Iterator[Contender]]


@pytest.mark.parametrize(
    ("peer", "module", "install"),
    [
        (bitsandbytes_nf4, "bitsandbytes", "pip install bitsandbytes"),
        (gemlite, "gemlite.helper", "pip install gemlite"),
        (humming, "humming.layer", "pip install humming-kernels"),
    ],
)
def test_what_is_not_installed_is_named(
    peer: Builder, module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found, missing = build(torch.randn(64, 128), [peer])
    assert not found
    assert len(missing) == 1
    assert install in missing[0]


def test_parameters_of_a_module_are_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_peers, "_SMALL", 128)
    layer = nn.Linear(128, 32).bfloat16()
    layer.bias.data.zero_()  # 64 bytes: a setting
    contender = of_module("a layer", layer, layer.weight.float)
    x = torch.randn(3, 128).bfloat16()
    with torch.inference_mode():
        assert contender.read_bytes == 128 * 32 * 2
        assert error(contender, x) < 4e-3
        doubled = contender.product(x, layer.weight * 2)
        assert torch.equal(doubled, contender.product(x, *contender.operands) * 2)


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("peer", [cublas, tinygemm, bitsandbytes_nf4, humming, gemlite])
@torch.inference_mode()
def test_products_are_those_of_the_weights(peer: Builder) -> None:
    torch.manual_seed(0)
    weight = torch.randn(512, 1024) * 0.02
    found, missing = build(weight, [peer])
    if missing:
        pytest.skip(missing[0])
    for contender in found:
        distance = (contender.dequantize().cpu() - weight).norm() / weight.norm()
        assert distance < 0.15
        for rows in (1, 40):
            assert error(contender, torch.randn(rows, 1024, device="cuda")) < contender.tolerance
