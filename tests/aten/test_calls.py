"""The short way of a call of functional.linear: when it is taken, and that it never tells on."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from phiquant import PhiConfig, PhiTensor, ops
from phiquant.aten import calls
from phiquant.plane_tensor import PREPARED

pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")


@pytest.fixture
def weight() -> PhiTensor:
    torch.manual_seed(0)
    return PhiTensor.from_hp(torch.randn(24, 192), PhiConfig())


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Notes every product that went the short way."""
    noted: list[Any] = []
    product = calls._product
    monkeypatch.setattr(calls, "_product", lambda *a: noted.append(a) or product(*a))
    return noted


def long_way(x: Tensor, weight: PhiTensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = torch.ops.phiquant.linear(x, *weight.planes, bias, *weight.op_arguments)
    return result


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(192,), (1, 192), (2, 3, 192), (0, 192), (40, 192)], ids=str)
def test_same_as_the_op(
    mode: Callable[[], Any],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    weight: PhiTensor,
    short: list[Any],
) -> None:
    x, bias = torch.randn(shape, dtype=dtype), torch.randn(24, dtype=dtype)
    with mode():
        assert torch.equal(functional.linear(x, weight, bias), long_way(x, weight, bias))
        assert torch.equal(functional.linear(x, weight), long_way(x, weight))
        skewed = torch.randn(192, 3, dtype=dtype).t()
        assert torch.equal(functional.linear(skewed, weight), long_way(skewed, weight))
    assert len(short) == 3


@pytest.mark.parametrize("deep", [PhiConfig(exact=True), PhiConfig(deviation_bits=8)], ids=str)
def test_every_kind_of_weight(deep: PhiConfig, short: list[Any]) -> None:
    weight = PhiTensor.from_hp(torch.randn(24, 192).bfloat16(), deep)
    x = torch.randn(2, 192)
    for tier in (weight, weight.at(0), weight.at(weight.deviation_bits)):
        assert torch.equal(functional.linear(x, tier), long_way(x, tier))
    assert len(short) == 3


def test_a_plane_that_is_replaced_or_written_counts(weight: PhiTensor) -> None:
    other = PhiTensor.from_hp(torch.randn(24, 192) * 8, PhiConfig())
    x = torch.randn(1, 192)
    functional.linear(x, weight)
    weight.index_plane.copy_(other.index_plane)
    assert torch.equal(functional.linear(x, weight), long_way(x, weight))
    weight.scale_plane = other.scale_plane
    assert PREPARED not in vars(weight)
    weight.deviation_plane, weight.exponent = other.deviation_plane, other.exponent
    assert torch.equal(functional.linear(x, weight), functional.linear(x, other))
    with torch.no_grad():
        weight.copy_(PhiTensor.from_hp(torch.randn(24, 192), PhiConfig()))
    assert torch.equal(functional.linear(x, weight), long_way(x, weight))
    weight.index_plane.data = other.index_plane.clone()
    assert torch.equal(functional.linear(x, weight), long_way(x, weight))


def test_a_strided_plane_that_is_written_counts(weight: PhiTensor) -> None:
    x, wide = torch.randn(1, 192), weight.index_plane.repeat(1, 2)
    weight.index_plane = wide[:, : weight.index_plane.shape[1]]
    assert not weight.index_plane.is_contiguous()
    before = functional.linear(x, weight)
    wide.zero_()
    assert torch.equal(functional.linear(x, weight), long_way(x, weight))
    assert not torch.equal(functional.linear(x, weight), before)


def test_a_plane_that_shrank_is_told(weight: PhiTensor) -> None:
    weight.fqn = "layer.weight"
    functional.linear(torch.randn(1, 192), weight)
    weight.scale_plane.resize_(3, 3)
    with pytest.raises(ValueError, match=r"layer\.weight: index: expected"):
        functional.linear(torch.randn(1, 192), weight)


def test_copies_prepare_their_own_planes(weight: PhiTensor) -> None:
    x = torch.randn(1, 192)
    functional.linear(x, weight)
    for again in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight)), weight.clone()):
        assert PREPARED not in vars(again)
        again.index_plane.zero_()
        assert torch.equal(functional.linear(x, again), long_way(x, again))
    assert torch.equal(functional.linear(x, weight), long_way(x, weight))


def test_swapped_tensors_take_their_planes_along(weight: PhiTensor) -> None:
    x, other = torch.randn(1, 192), PhiTensor.from_hp(torch.randn(24, 192), PhiConfig())
    before = functional.linear(x, weight), functional.linear(x, other)
    torch.utils.swap_tensors(weight, other)
    assert torch.equal(functional.linear(x, weight), before[1])
    assert torch.equal(functional.linear(x, other), before[0])


def test_a_tensor_that_was_not_prepared_is_refused(weight: PhiTensor) -> None:
    functional.linear(torch.randn(1, 192), weight)
    for wrong in (vars(weight)[PREPARED][0].clone(), torch.zeros(64, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="prepared: expected what phiquant::_prepare made"):
            torch.ops.phiquant._prepared_linear(torch.randn(1, 192), wrong, None)


def test_planes_go_with_their_weight() -> None:
    weight = PhiTensor.from_hp(torch.randn(24, 192), PhiConfig())
    functional.linear(torch.randn(1, 192), weight)
    storage = weight.index_plane.untyped_storage()
    held = torch._C._storage_Use_Count(storage._cdata)
    del weight
    gc.collect()
    assert torch._C._storage_Use_Count(storage._cdata) == held - 1  # of the plane


@pytest.mark.parametrize("trained", ["input", "bias", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(192,), (1, 192), (2, 3, 192), (0, 192)], ids=str)
def test_gradients_are_those_of_the_op(
    shape: tuple[int, ...], dtype: torch.dtype, trained: str, weight: PhiTensor, short: list[Any]
) -> None:
    results = []
    for run in (functional.linear, long_way):
        torch.manual_seed(1)
        x = torch.randn(shape, dtype=dtype, requires_grad=trained != "bias")
        bias = nn.Parameter(torch.randn(24, dtype=dtype), requires_grad=trained != "input")
        product = run(x, weight, bias)
        product.backward(torch.randn(product.shape, dtype=dtype))
        results.append((product, x.grad, bias.grad))
    assert len(short) == 1
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize("deep", [PhiConfig(exact=True), PhiConfig(deviation_bits=8)], ids=str)
def test_gradients_of_every_kind_of_weight(deep: PhiConfig) -> None:
    weight = PhiTensor.from_hp(torch.randn(24, 192).bfloat16(), deep)
    for tier in (weight, weight.at(0), weight.at(0, "int8"), weight.at(weight.deviation_bits)):
        x = torch.randn(2, 192, requires_grad=True)
        functional.linear(x, tier).backward(y := torch.randn(2, 24))
        assert x.grad is not None
        assert torch.equal(x.grad, y @ tier.dequantize(torch.float32))


def test_gradients_of_gradients(weight: PhiTensor) -> None:
    x = torch.randn(2, 192, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(24, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, weight, bias).square()

    assert torch.autograd.gradcheck(call, (x, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, bias), fast_mode=True)


def test_no_gradients_where_they_are_off(weight: PhiTensor, short: list[Any]) -> None:
    x, bias = torch.randn(2, 192, requires_grad=True), nn.Parameter(torch.zeros(24))
    with torch.no_grad():
        assert not functional.linear(x, weight, bias).requires_grad
    with torch.inference_mode():
        assert functional.linear(x, weight, bias).is_inference()
    assert functional.linear(x, weight, bias).requires_grad
    assert len(short) == 3


def test_a_plane_that_is_written_before_the_gradient_is_told(weight: PhiTensor) -> None:
    x = torch.randn(2, 192, requires_grad=True)
    product = functional.linear(x, weight)
    weight.index_plane.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_a_checkpointed_layer_gives_the_same_gradients(weight: PhiTensor) -> None:
    x = torch.randn(2, 192, requires_grad=True)
    for reentrant in (False, True):
        checkpoint(functional.linear, x, weight, use_reentrant=reentrant).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * weight.dequantize().sum(0).expand(2, -1))


def test_whoever_watches_sees_the_op(weight: PhiTensor, short: list[Any]) -> None:
    x = torch.randn(2, 192)
    with FlopCounterMode(display=False):
        functional.linear(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.linear(x, weight).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda row: functional.linear(row, weight))(x)
    torch.testing.assert_close(mapped, long_way(x, weight))
    traced = torch.jit.trace(lambda y: functional.linear(y, weight), x, check_trace=False)
    assert torch.equal(traced(x), long_way(x, weight))
    assert not short
