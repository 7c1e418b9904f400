"""Back to plain weights: the decoded values, ties, layouts, and memory of one weight at a time."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.support import TiedModel, compressed, same_bits


def plain_parameters(model: nn.Module) -> bool:
    return all(type(parameter) is nn.Parameter for parameter in model.parameters())


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64], ids=str)
def test_every_weight_is_decoded(exact: bool, dtype: torch.dtype | None) -> None:
    model = TiedModel()
    originals = {name: value.clone() for name, value in model.state_dict().items()}
    phiquant.quantize_(model, PhiConfig(exact=exact))
    decoded = {
        name: parameter.dequantize(dtype)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if isinstance(parameter, PhiTensor)
    }
    assert len(decoded) == 4
    assert phiquant.dequantize_(model, dtype=dtype) is model
    assert plain_parameters(model)
    for name, values in decoded.items():
        parameter = model.get_parameter(name)
        assert torch.equal(parameter, values), name
        assert parameter.dtype == (dtype or torch.float32)
        assert parameter.requires_grad
        assert not exact or dtype is not None or same_bits(parameter.data, originals[name])


def test_shared_weights_stay_shared() -> None:
    model = TiedModel()
    model.again = nn.ModuleList([model.head])
    model.other = nn.Linear(128, 100, bias=False)
    model.other.register_parameter("second", model.embed.weight)
    phiquant.quantize_(model)
    phiquant.dequantize_(model)
    assert plain_parameters(model)
    assert model.embed.weight is model.head.weight is model.other.second
    assert model.again[0] is model.head


def test_the_plain_model_can_be_trained_and_saved() -> None:
    model = nn.Sequential(nn.Linear(128, 16))
    phiquant.quantize_(model)
    x = torch.randn(3, 128)
    expected = model(x)
    phiquant.dequantize_(model)
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    assert model[0].weight.grad is not None
    fresh = nn.Sequential(nn.Linear(128, 16))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("shape", [(8, 128), (2, 8, 128)], ids=["matrix", "experts"])
def test_a_transposed_weight_is_laid_out_as_in_a_new_module(shape: tuple[int, ...]) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(compressed(*shape).transpose(-2, -1), requires_grad=False)
    assert model.weight.transposed
    expected = model.weight.dequantize()
    phiquant.dequantize_(model)
    assert torch.equal(model.weight, expected)
    assert model.weight.is_contiguous()


def test_one_weight_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every compressed weight is gone before the next is decoded."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    phiquant.quantize_(model)
    planes = [weakref.ref(layer.weight.index_plane) for layer in model]
    alive: list[int] = []
    decode = PhiTensor.dequantize

    def counting(self: PhiTensor, *args: Any) -> torch.Tensor:
        gc.collect()
        alive.append(sum(plane() is not None for plane in planes))
        return decode(self, *args)

    monkeypatch.setattr(PhiTensor, "dequantize", counting)
    phiquant.dequantize_(model)
    assert alive == [4, 3, 2, 1]


def test_a_model_without_compressed_weights_is_left_as_it_is() -> None:
    model = nn.Linear(4, 4)
    kept = model.weight
    assert phiquant.dequantize_(phiquant.dequantize_(model)).weight is kept


def test_the_meta_device() -> None:
    model = nn.Linear(128, 16)
    phiquant.quantize_(model)
    phiquant.dequantize_(model.to("meta"))
    assert plain_parameters(model)
    assert model.weight.is_meta


class TestBadInput:
    def test_no_module(self) -> None:
        with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got PhiTensor"):
            phiquant.dequantize_(compressed(4, 64))  # type: ignore[type-var]

    @pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, "float16"], ids=str)
    def test_dtypes(self, dtype: Any) -> None:
        model = nn.Linear(128, 16)
        phiquant.quantize_(model)
        with pytest.raises(TypeError, match=r"^dtype: expected one of bfloat16, .*got"):
            phiquant.dequantize_(model, dtype=dtype)
        assert isinstance(model.weight, PhiTensor)

    def test_a_corrupt_weight_is_named_and_kept(self) -> None:
        model = nn.Sequential(nn.Linear(600, 8), nn.Linear(600, 8))
        phiquant.quantize_(model, PhiConfig(exact=True))
        model[1].weight.offset_plane.fill_(-1)
        with pytest.raises(ValueError, match=r"^1\.weight: "):
            phiquant.dequantize_(model)
        assert type(model[0].weight) is nn.Parameter
        assert isinstance(model[1].weight, PhiTensor)
