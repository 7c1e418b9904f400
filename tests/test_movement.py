"""Compressed models move like plain ones: devices, dtypes, copies, optimizers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phiquant
from phiquant import PhiConfig, PhiTensor
from phiquant.aten import fallback
from tests.support import TiedModel, compressed, same_bits, weight

CONFIGS = [
    pytest.param(PhiConfig(deviation_bits=0), id="index"),
    pytest.param(PhiConfig(deviation_bits=8), id="deviation 8"),
    pytest.param(PhiConfig(exact=True), id="exact"),
]
cuda = pytest.mark.cuda


def ids() -> Tensor:
    return torch.randint(0, 100, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> TiedModel:
    model = TiedModel().eval()
    phiquant.quantize_(model, request.param)
    return model


def planes_of(model: nn.Module) -> list[Tensor]:
    """Every plane of every compressed weight."""
    weights = [p for p in model.parameters() if isinstance(p, PhiTensor)]
    return [plane for w in weights for plane in (*w.planes, w.checksum_plane) if plane is not None]


class TestDevices:
    def test_the_same_device_is_the_same_tensor(self, model: TiedModel) -> None:
        kept = model.head.weight
        assert kept.to("cpu") is kept
        assert kept.cpu() is kept
        assert kept.to(torch.float32, non_blocking=True) is kept
        assert model.to("cpu", non_blocking=True).head.weight is kept

    def test_a_copy_that_is_asked_for_has_its_own_planes(self, model: TiedModel) -> None:
        kept = model.head.weight
        copied = kept.to("cpu", copy=True, non_blocking=True)
        assert isinstance(copied, PhiTensor)
        assert copied.index_plane.data_ptr() != kept.index_plane.data_ptr()
        assert torch.equal(copied, kept)
        assert copied.fqn == kept.fqn

    def test_the_meta_device_keeps_all_but_the_values(self, model: TiedModel) -> None:
        shapes = [plane.shape for plane in planes_of(model)]
        config = (model.head.weight.is_exact, model.head.weight.deviation_bits)
        model.to("meta")
        assert all(plane.is_meta for plane in planes_of(model))
        assert [plane.shape for plane in planes_of(model)] == shapes
        assert (model.head.weight.is_exact, model.head.weight.deviation_bits) == config
        assert model(ids().to("meta")).shape == (2, 5, 100)
        assert model.head.weight is model.embed.weight

    def test_room_takes_a_state_dict(self, model: TiedModel) -> None:
        expected, state = model(ids()), copy.deepcopy(model.state_dict())
        empty = model.to("meta").to_empty(device="cpu")
        assert empty.head.weight is empty.embed.weight
        empty.load_state_dict(state)
        assert torch.equal(empty(ids()), expected)

    @cuda
    @pytest.mark.parametrize("non_blocking", [False, True])
    def test_there_and_back(self, model: TiedModel, non_blocking: bool) -> None:
        before = copy.deepcopy(model)
        model.to("cuda", non_blocking=non_blocking)
        assert all(plane.is_cuda for plane in planes_of(model))
        assert model.head.weight.is_cuda
        assert model.head.weight is model.embed.weight
        decoded = model.head.weight.dequantize().cpu()
        assert same_bits(decoded, before.head.weight.dequantize())
        torch.testing.assert_close(model(ids().cuda()).cpu(), before(ids()), rtol=1e-4, atol=1e-4)
        model.cpu()
        torch.cuda.synchronize()
        assert torch.equal(model.head.weight, before.head.weight)
        assert torch.equal(model(ids()), before(ids()))

    @cuda
    def test_pinned_planes_go_over_at_once(self, model: TiedModel) -> None:
        pinned = model.head.weight.pin_memory()
        assert isinstance(pinned, PhiTensor)
        assert pinned.is_pinned()
        assert not model.head.weight.is_pinned()
        moved = pinned.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        assert torch.equal(moved.cpu(), model.head.weight)


class TestDtypes:
    @pytest.mark.parametrize(
        "there",
        [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float16)],
        ids=["half", "bfloat16", "to"],
    )
    def test_a_round_trip_keeps_the_planes(
        self, model: TiedModel, there: Callable[[nn.Module], Any]
    ) -> None:
        before, parameter = copy.deepcopy(model), model.head.weight
        there(model)
        assert model.head.weight is model.embed.weight is parameter
        assert isinstance(parameter, nn.Parameter)
        assert parameter.dtype == model.layers[0].bias.dtype != torch.float32
        assert parameter.stored_dtype == torch.float32
        assert model(ids()).dtype == parameter.dtype
        model.float()
        assert torch.equal(model.head.weight, before.head.weight)
        same = zip(planes_of(model), planes_of(before), strict=True)
        assert all(torch.equal(*pair) for pair in same)
        assert not model.head.weight.is_exact or model.head.weight.verify()

    @pytest.mark.parametrize("swap", [False, True], ids=["default", "swapping"])
    def test_after_it_was_compiled(self, swap: bool) -> None:
        model, x = nn.Sequential(nn.Linear(128, 64)), torch.randn(3, 128)
        phiquant.quantize_(model)
        compiled = torch.compile(model, backend="aot_eager")
        compiled(x)
        torch.__future__.set_swap_module_params_on_conversion(swap)
        try:
            model.half()
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        torch.testing.assert_close(compiled(x.half()), model(x.half()))

    def test_a_memory_format_changes_nothing(self) -> None:
        """The planes know one order, and `model.to(memory_format=...)` is common for images."""
        flat = compressed(8, 3 * 4 * 4)
        kernel = flat._with(column_shape=(3, 4, 4))
        moved = kernel.to(memory_format=torch.channels_last)
        assert isinstance(moved, PhiTensor)
        assert moved.shape == (8, 3, 4, 4)
        assert torch.equal(moved.index_plane, kernel.index_plane)


class TestCopies:
    def test_a_shallow_copy_shares_planes(self, model: TiedModel) -> None:
        copied = copy.copy(model.head.weight)
        assert isinstance(copied, PhiTensor)
        assert isinstance(copied, nn.Parameter)
        assert copied.index_plane is model.head.weight.index_plane

    def test_a_deep_copy_of_a_model_keeps_ties_and_shares_nothing(self, model: TiedModel) -> None:
        copied = copy.deepcopy(model)
        assert copied.head.weight is copied.embed.weight
        assert torch.equal(copied(ids()), model(ids()))
        pairs = zip(planes_of(copied), planes_of(model), strict=True)
        assert all(mine.data_ptr() != its.data_ptr() for mine, its in pairs if mine.numel())

    def test_a_deep_copy_keeps_what_others_noted_on_a_weight(self, model: TiedModel) -> None:
        model.head.weight.note = ["loaded"]
        copied = copy.deepcopy(model.head.weight)
        assert isinstance(copied, nn.Parameter)
        assert copied.note == ["loaded"]
        assert copied.note is not model.head.weight.note
        assert copied.fqn == model.head.weight.fqn

    def test_a_deep_copy_of_two_tiers_has_one_set_of_planes(self) -> None:
        deep = compressed(16, 128)
        copied, tier = copy.deepcopy([deep, deep.at(0)])
        assert tier.data_ptr() == copied.data_ptr() != deep.data_ptr()

    def test_swapped_tensors(self) -> None:
        one, other = compressed(16, 128), PhiTensor.from_hp(weight(16, 128, seed=1))
        expected = other.dequantize()
        torch.utils.swap_tensors(one, other)
        assert torch.equal(one.dequantize(), expected)
        plain = weight(16, 128, seed=2)
        torch.utils.swap_tensors(one, plain)
        assert type(one) is Tensor
        assert torch.equal(plain.dequantize(), expected)

    def test_parameters_to_vector_decodes_and_says_so(
        self, model: TiedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fallback, "_warned", set())
        with pytest.warns(UserWarning, match=r"embed\.weight is decoded on every call"):
            vector = nn.utils.parameters_to_vector(model.parameters())
        assert torch.equal(vector[:12800].view(100, 128), model.embed.weight.dequantize())
        with pytest.raises(RuntimeError, match=r"^embed\.weight: \.data .* cannot be assigned"):
            nn.utils.vector_to_parameters(vector, model.parameters())


class TestAliases:
    """A write through an alias reaches the weight, or is refused; it is never lost."""

    @pytest.fixture(params=[False, True], ids=["lossy", "exact"])
    def pair(self, request: pytest.FixtureRequest) -> tuple[nn.Linear, PhiTensor]:
        """A layer and a weight whose planes do not fit its planes."""
        config, model = PhiConfig(exact=request.param), nn.Linear(128, 16)
        phiquant.quantize_(model, config)
        return model, PhiTensor.from_hp(weight(16, 128, seed=1) * 1e6, config)

    @pytest.mark.parametrize(
        "alias",
        [
            lambda model: model.weight.data,
            lambda model: model.weight.detach(),
            lambda model: model.state_dict()["weight"],
            lambda model: model.weight[:],
            lambda model: model.weight.view(-1, 128),
        ],
        ids=["data", "detach", "state_dict", "slice", "view"],
    )
    def test_what_would_be_lost_is_refused(
        self, pair: Any, alias: Callable[[nn.Module], Tensor]
    ) -> None:
        model, source = pair
        before = model.weight.dequantize()
        with pytest.raises(RuntimeError, match=r"^weight: cannot be overwritten through \.data"):
            alias(model).copy_(source)
        assert torch.equal(model.weight.dequantize(), before)
        with torch.no_grad():
            model.weight.copy_(source)
        assert torch.equal(model.weight, source)

    def test_a_slice_that_fits_is_written_through(self) -> None:
        tensor, source = compressed(16, 128), PhiTensor.from_hp(weight(16, 128, seed=1))
        assert tensor.exponent == source.exponent
        tensor[2:4].copy_(source[4:6])
        assert torch.equal(tensor.dequantize()[2:4], source.dequantize()[4:6])

    @pytest.mark.parametrize(
        "travel",
        [
            copy.copy,
            copy.deepcopy,
            torch.clone,
            lambda t: t.to(torch.float16),
            lambda t: torch.empty_like(t),
        ],
        ids=["copy", "deepcopy", "clone", "to", "empty_like"],
    )
    def test_a_copy_is_nobodys_alias(self, pair: Any, travel: Callable[[Tensor], Tensor]) -> None:
        model, source = pair
        copied = travel(model.weight.detach())
        copied.copy_(source)
        assert torch.equal(copied.index_plane, source.index_plane)
        assert copied.exponent == source.exponent


class TestOptimizers:
    def test_only_what_can_be_trained_is(self, model: TiedModel) -> None:
        before = copy.deepcopy(model)
        trainable = (p for p in model.parameters() if p.requires_grad)
        optimizer = torch.optim.Adam(trainable, lr=0.1)
        model(ids()).square().mean().backward()
        optimizer.step()
        assert torch.equal(model.head.weight, before.head.weight)
        assert model.head.weight.grad is None
        assert not torch.equal(model.layers[0].bias, before.layers[0].bias)

    def test_one_that_is_given_all_parameters_leaves_the_frozen_alone(
        self, model: TiedModel
    ) -> None:
        before = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(ids()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(model.head.weight, before.head.weight)
