"""Convolutions with a compressed weight, and what else is done to weights of their shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.aten.support import silently
from tests.support import DTYPES, compressed, same_bits

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(24, 16, 5, stride=2, padding=2), (2, 24, 31)),
    "2d": (lambda: nn.Conv2d(24, 16, 3, dilation=2, bias=False), (2, 24, 9, 8)),
    "3d": (lambda: nn.Conv3d(24, 4, (1, 3, 3)), (2, 24, 3, 5, 5)),
    "pointwise": (lambda: nn.Conv2d(128, 16, 1), (2, 128, 3, 3)),
    "groups": (lambda: nn.Conv2d(64, 32, 3, groups=4), (2, 64, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(16, 16, 7, groups=16), (2, 16, 9, 9)),
    "same": (lambda: nn.Conv2d(24, 16, 3, padding="same"), (2, 24, 6, 6)),
    "reflect": (lambda: nn.Conv1d(24, 16, 5, padding=2, padding_mode="reflect"), (2, 24, 9)),
    "circular": (lambda: nn.Conv2d(24, 16, 3, padding=1, padding_mode="circular"), (24, 6, 6)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(24, 16, 5, stride=3), (2, 24, 7)),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(24, 16, 4, stride=2, padding=1, output_padding=1),
        (2, 24, 5, 5),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 8, 3, groups=2), (2, 4, 3, 3, 3)),
}
MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]


@pytest.fixture(params=LAYERS, ids=lambda name: name.replace(" ", "-"))
def layer(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


def decoded(model: nn.Module) -> nn.Module:
    """A copy whose weights are plain and hold what the compressed ones decode to."""
    plain = copy.deepcopy(model)
    plain.weight = nn.Parameter(model.weight.dequantize().contiguous())
    return plain


class TestLayers:
    @pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
    def test_outputs_are_those_of_the_decoded_weight(
        self, layer: tuple[nn.Module, Tensor], exact: bool
    ) -> None:
        model, x = layer
        original, before = model.weight.detach().clone(), model(x)
        report = phiquant.quantize_(model, PhiConfig(exact=exact))
        (entry,) = report.compressed
        assert entry.shape == tuple(model.weight.shape) == tuple(original.shape)
        assert entry.stored_bytes == model.weight.stored_bytes
        plain = decoded(model)
        for mode in MODES:
            with mode():
                assert torch.equal(silently(lambda: model(x)), plain(x))
        if exact:
            assert same_bits(model.weight.dequantize(), original)
            assert phiquant.verify(model).complete
            assert torch.equal(model(x), before)

    def test_sizes_are_told_before(self, layer: tuple[nn.Module, Tensor]) -> None:
        model, _ = layer
        preview = phiquant.preview(model)
        assert preview.stored_bytes == phiquant.quantize_(model).stored_bytes

    def test_gradients_of_input_and_bias(self, layer: tuple[nn.Module, Tensor]) -> None:
        model, x = layer
        phiquant.quantize_(model)
        plain = decoded(model)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        for module, given in zip((model, plain), inputs, strict=True):
            silently(lambda m=module, g=given: m(g).square().sum().backward())
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
        if model.bias is not None:
            torch.testing.assert_close(model.bias.grad, plain.bias.grad)
        assert model.weight.grad is None

    def test_autocast(self, layer: tuple[nn.Module, Tensor]) -> None:
        model, x = layer
        phiquant.quantize_(model)
        plain = decoded(model)
        for mode in MODES:
            with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                ours, theirs = silently(lambda: model(x)), plain(x)
            assert ours.dtype == torch.bfloat16
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_other_dtypes(self, dtype: torch.dtype) -> None:
        model = nn.Conv2d(24, 16, 3)
        phiquant.quantize_(model)
        model.to(dtype)
        x = torch.randn(2, 24, 5, 5, dtype=dtype)
        assert torch.equal(silently(lambda: model(x)), decoded(model)(x))

    def test_channels_last(self) -> None:
        model, x = nn.Conv2d(24, 16, 3), torch.randn(2, 24, 5, 5)
        phiquant.quantize_(model)
        expected = model(x).detach()
        model.to(memory_format=torch.channels_last)
        assert isinstance(model.weight, PhiTensor)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)
        original = nn.Conv2d(24, 16, 3).to(memory_format=torch.channels_last)
        kept = original.weight.detach().clone()
        phiquant.quantize_(original, PhiConfig(exact=True))
        assert torch.equal(original.weight.dequantize(), kept)

    def test_importance_is_of_the_columns(self) -> None:
        of = torch.randn(16, 24, 3, 3)
        importance = torch.rand(24 * 9)
        tensor = PhiTensor.from_hp(of, importance=importance, column_dims=3)
        flat = PhiTensor.from_hp(of.flatten(1), importance=importance)
        assert torch.equal(tensor.flatten(1), flat)
        with pytest.raises(ValueError, match="importance: expected 216 finite values"):
            PhiTensor.from_hp(of, importance=torch.rand(3), column_dims=3)

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"column_dims": 4}, "column_dims must be from 1 to 3 for a weight of 4 dimensions"),
            ({"column_dims": 0}, "column_dims must be from 1 to 3"),
            ({"column_dims": 2, "transposed": True}, "must be 1 for a transposed weight, got 2"),
        ],
    )
    def test_ways_that_do_not_fit(self, how: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PhiTensor.from_hp(torch.randn(4, 4, 4, 4), **how)


@pytest.fixture(params=["lossy", "exact"])
def kernel(request: pytest.FixtureRequest) -> PhiTensor:
    """A weight as a convolution has it."""
    flat = compressed(16, 600, exact=request.param == "exact")
    kernel = flat._with(column_shape=(24, 5, 5))
    kernel.fqn = "block.weight"
    return kernel


class TestWeights:
    @pytest.mark.parametrize(
        "view",
        [
            lambda w: w[4:12],
            lambda w: w[::3],
            lambda w: w[-3],
            lambda w: w[2:][1],
            lambda w: w[:, :],
            lambda w: w[:, 0:24, :],
            lambda w: w.chunk(2)[1],
            lambda w: w.split([4, 12])[0],
            lambda w: w.flatten(1),
            lambda w: w.view(16, -1),
            lambda w: w.reshape(16, 600)[:5],
            lambda w: w.view(4, 4, 24, 5, 5),
            lambda w: w.view(4, 4, 24, 5, 5)[1],
            lambda w: w.flatten(1).t(),
            lambda w: w.permute(0, 1, 2, 3),
            lambda w: w.detach(),
            lambda w: w.clone(),
            lambda w: w.data,
        ],
    )
    def test_views_that_stay_compressed(
        self, kernel: PhiTensor, view: Callable[[Tensor], Tensor]
    ) -> None:
        dense, ours = view(kernel.dequantize()), silently(lambda: view(kernel))
        assert isinstance(ours, PhiTensor)
        assert ours.shape == dense.shape
        assert torch.equal(ours.dequantize(), dense)

    @pytest.mark.filterwarnings("ignore:.*has no compressed form")
    @pytest.mark.parametrize(
        "call",
        [
            lambda w: w[:, 3:7],
            lambda w: w[:, 2],
            lambda w: w[..., 1],
            lambda w: w[3, :, 2, 2],
            lambda w: w.transpose(0, 1),
            lambda w: w.transpose(-2, -1),
            lambda w: w.permute(0, 2, 3, 1),
            lambda w: w.chunk(3, dim=1)[2],
            lambda w: w.flip(2, 3),
            lambda w: w.sum((1, 2, 3)),
            lambda w: w.view(-1),
            lambda w: w.flatten(),
            lambda w: w.view(16, 24, 25),
            lambda w: w.unsqueeze(0),
            lambda w: functional.pad(w, (1, 1)),
            lambda w: w - w.mean((1, 2, 3), keepdim=True),
            lambda w: w @ torch.ones(5, 2),
            lambda w: functional.linear(torch.ones(3, 5), w[0, 0]),
            lambda w: torch.einsum("oihw,bi->bo", w, torch.ones(2, 24)),
        ],
    )
    def test_others_decode(self, kernel: PhiTensor, call: Callable[[Tensor], Tensor]) -> None:
        ours = call(kernel)
        ours = ours.dequantize() if isinstance(ours, PhiTensor) else ours
        torch.testing.assert_close(ours, call(kernel.dequantize()))

    @pytest.mark.parametrize(
        "rows", [torch.tensor([3, -1, 3]), torch.arange(16) > 12, torch.tensor([[1], [2]])], ids=str
    )
    def test_rows_by_number(self, kernel: PhiTensor, rows: Tensor) -> None:
        assert torch.equal(silently(lambda: kernel[rows]), kernel.dequantize()[rows])

    @pytest.mark.parametrize(("dim", "place"), [(0, 16), (0, -17), (4, 0)])
    def test_places_that_are_not_there(self, kernel: PhiTensor, dim: int, place: int) -> None:
        with pytest.raises(IndexError):
            kernel.select(dim, place)

    def test_equality_asks_for_the_shape(self, kernel: PhiTensor) -> None:
        assert torch.equal(kernel, kernel.clone())
        assert torch.equal(kernel, kernel.dequantize())
        assert not torch.equal(kernel, kernel.flatten(1))
        assert not torch.equal(kernel, kernel._with(column_shape=(6, 10, 10)))

    def test_copies_keep_the_shape(self, kernel: PhiTensor) -> None:
        for copied in (copy.deepcopy(kernel), kernel.half(), kernel.to("meta")):
            assert isinstance(copied, PhiTensor)
            assert copied.shape == (16, 24, 5, 5)
        room = torch.empty_like(kernel)
        room.copy_(kernel)
        assert torch.equal(room, kernel)
        assert torch.zeros_like(kernel).shape == kernel.shape
        with pytest.raises(ValueError, match=r"has shape \(16, 600\) instead of \(16, 24, 5, 5\)"):
            kernel.copy_(kernel.flatten(1))

    def test_tiers_keep_the_shape(self, kernel: PhiTensor) -> None:
        assert kernel.at(0).dequantize().shape == kernel.at(0).shape == (16, 24, 5, 5)
        assert kernel.at(0).bits_per_weight < kernel.bits_per_weight


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["same", "circular", "transposed 2d"])
def test_one_graph(name: str, mode: Callable[[], Any]) -> None:
    make, shape = LAYERS[name]
    model, x = make(), torch.randn(shape)
    phiquant.quantize_(model)
    torch._dynamo.reset()
    graph = torch.compile(model, fullgraph=True)
    with mode():
        graph(x)  # torch itself warns while it compiles
        torch.testing.assert_close(silently(lambda: graph(x)), model(x))
