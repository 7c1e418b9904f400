"""State dicts: compressed into compressed, into plain, plain into compressed, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import phiquant
from phiquant import PhiConfig
from tests.support import same_bits


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    """Two models of equal layout but different values, one of them with a far exponent."""
    models = tuple(nn.Sequential(nn.Linear(128, 16)) for _ in range(2))
    models[0][0].weight.data.mul_(1e6)
    for model in models:
        phiquant.quantize_(model)
    return models


@pytest.mark.parametrize("assign", [False, True])
def test_between_equally_compressed_models(pair: Any, assign: bool) -> None:
    source, target = pair
    target.load_state_dict(source.state_dict(), strict=True, assign=assign)
    assert torch.equal(target[0].weight, source[0].weight)
    assert isinstance(target[0].weight, nn.Parameter)
    x = torch.randn(3, 128)
    assert torch.equal(target(x), source(x))


def test_of_different_dtypes() -> None:
    source, target = nn.Linear(128, 16).bfloat16(), nn.Linear(128, 16)
    for model in (source, target):
        phiquant.quantize_(model)
    target.load_state_dict(source.state_dict())
    assert target.weight.dtype == torch.float32
    assert torch.equal(target.weight.dequantize().bfloat16(), source.weight.dequantize())


def test_a_plain_checkpoint_does_not_fit(pair: Any) -> None:
    with pytest.raises(RuntimeError, match=r"load a plain checkpoint before compressing"):
        pair[1].load_state_dict(nn.Sequential(nn.Linear(128, 16)).state_dict())


def test_a_compressed_checkpoint_decodes_into_a_plain_model(pair: Any) -> None:
    plain = nn.Sequential(nn.Linear(128, 16))
    plain.load_state_dict(pair[0].state_dict())
    assert torch.equal(plain[0].weight, pair[0][0].weight.dequantize())


def test_assigning_into_a_plain_model(pair: Any) -> None:
    with torch.device("meta"):
        plain = nn.Sequential(nn.Linear(128, 16))
    with pytest.raises(RuntimeError, match=r"model\.requires_grad_\(False\) first"):
        plain.load_state_dict(pair[0].state_dict(), assign=True)
    plain.requires_grad_(False).load_state_dict(pair[0].state_dict(), assign=True)
    x = torch.randn(3, 128)
    assert torch.equal(plain(x), pair[0](x))


def test_a_functional_call_takes_it(pair: Any) -> None:
    x = torch.randn(3, 128)
    plain = nn.Sequential(nn.Linear(128, 16))
    called = torch.func.functional_call(plain, pair[0].state_dict(), (x,))
    assert torch.equal(called, pair[0](x))


def test_different_configurations_do_not_fit(pair: Any) -> None:
    other = nn.Sequential(nn.Linear(128, 16))
    phiquant.quantize_(other, PhiConfig(index_bits=5))
    with pytest.raises(RuntimeError, match="has index_bits 5 instead of 4"):
        pair[0].load_state_dict(other.state_dict())


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_an_exact_model_from_a_file(tmp_path: Path, assign: bool) -> None:
    source, target = nn.Linear(600, 8).half(), nn.Linear(600, 8).half()
    source.weight.data[0, :3] = torch.tensor([float("inf"), -0.0, float("nan")])
    for model in (source, target):
        phiquant.quantize_(model, PhiConfig(exact=True))
    torch.save(source.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True, mmap=True)
    assert target.load_state_dict(state, assign=assign) == ([], [])
    assert target.weight.verify()
    assert same_bits(target.weight.dequantize(), source.weight.dequantize())
    assert not target.weight.requires_grad


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_missing_and_unexpected_weights_are_named(pair: Any, assign: bool) -> None:
    source, target = pair
    before = target[0].weight.clone()
    state = {"other.weight": source[0].weight, "0.bias": source[0].bias}
    with pytest.raises(RuntimeError, match=r'Missing .*"0\.weight"(.|\n)*"other\.weight"'):
        target.load_state_dict(state, assign=assign)
    report = target.load_state_dict(state, strict=False, assign=assign)
    assert (report.missing_keys, report.unexpected_keys) == (["0.weight"], ["other.weight"])
    assert torch.equal(target[0].weight, before)


def test_a_weight_of_another_shape_is_named(pair: Any) -> None:
    wide = nn.Sequential(nn.Linear(192, 16))
    phiquant.quantize_(wide)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        pair[0].load_state_dict(wide.state_dict())


def test_assigning_plain_weights_makes_a_plain_model(pair: Any) -> None:
    plain = nn.Sequential(nn.Linear(128, 16))
    pair[0].load_state_dict(plain.state_dict(), assign=True)
    assert type(pair[0][0].weight) is nn.Parameter
    x = torch.randn(3, 128)
    assert torch.equal(pair[0](x), plain(x))
