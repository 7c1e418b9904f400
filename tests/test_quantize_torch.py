"""quantize_ among torch's own: modules that read weights, attention, training, torchao."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from torchao.quantization import FqnToConfig
from torchao.quantization import quantize_ as torchao_quantize_

import phiquant
from phiquant import PhiConfig
from tests.support import TiedModel, noise, relative, same_bits
from tests.test_quantize import is_compressed, untouched


class Direct(nn.Linear):
    """Linear layers whose forward reads the weight by itself."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(128, 64, bias=False)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight)


class TestModulesThatReadTheirWeight:
    @pytest.mark.filterwarnings("ignore:.*has no compressed form")
    @pytest.mark.parametrize(
        "use",
        [
            lambda x, w: x @ w.T,
            lambda x, w: functional.linear(x, w * 2),
            lambda x, w: functional.linear(x, w.data),
            lambda x, w: functional.linear(x, w.detach().to(x.dtype)),
            lambda x, w: x @ w.T + w.abs().mean(),
            lambda x, w: functional.linear(x, functional.normalize(w, dim=-1)),
            lambda x, w: x[:, :64] @ w[:, :64].T,
            lambda x, w: torch.cat([functional.linear(x, part) for part in w.chunk(2)], -1),
        ],
    )
    def test_they_work(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        model = Direct(use)
        x = torch.randn(3, 128)
        before = model(x)
        assert phiquant.quantize_(model).compressed
        assert relative(model(x), before) < 0.02

    @pytest.mark.filterwarnings("ignore:.*has no compressed form")
    def test_parametrizations_may_come_later(self) -> None:
        class Doubled(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return weight * 2

        x = torch.randn(3, 128)
        for register in (
            lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
            parametrizations.weight_norm,
        ):
            model = nn.Linear(128, 64)
            plain = copy.deepcopy(model)
            phiquant.quantize_(model)
            register(model), register(plain)
            assert relative(model(x), plain(x)) < 0.02

    def test_parametrized_modules_are_left_alone_and_work(self) -> None:
        x = torch.randn(3, 128)
        for register in (parametrizations.weight_norm, parametrizations.spectral_norm):
            model = nn.Sequential(register(nn.Linear(128, 64)), nn.Linear(64, 128)).eval()
            before = model(x)
            phiquant.quantize_(model)
            assert relative(model(x), before) < 0.02
            assert [is_compressed(module) for module in model] == [False, True]


class TestTransformers:
    """torch's own attention, with the fused paths that read weights without asking."""

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_multihead_attention(self, mode: Callable[[], Any]) -> None:
        model = nn.MultiheadAttention(128, 4, batch_first=True).eval()
        x = torch.randn(2, 5, 128)
        with mode():
            before = model(x, x, x)[0]
            names = [c.names[0] for c in phiquant.quantize_(model).compressed]
            assert names == ["in_proj_weight", "out_proj.weight"]
            assert 1e-4 < relative(model(x, x, x)[0], before) < 0.01

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @pytest.mark.parametrize("part", ["", "layers.0", "layers.1"])
    def test_an_encoder_with_padding(self, part: str) -> None:
        layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
        model = nn.TransformerEncoder(layer, 2).eval()
        x = torch.randn(2, 5, 128)
        padding = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]]).bool()
        with torch.inference_mode():
            before = model(x, src_key_padding_mask=padding)
            phiquant.quantize_(model, filter_fn=lambda module, name: name.startswith(part))
            after = model(x, src_key_padding_mask=padding)
        assert 1e-4 < relative(after[~padding], before[~padding]) < 0.01


class TestTraining:
    """Compressed layers are frozen; what comes before them can learn."""

    @pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
    def test_gradients_reach_an_adapter(self, exact: bool) -> None:
        base = nn.Linear(128, 64)
        down, up = nn.Linear(128, 4, bias=False), nn.Linear(4, 64, bias=False)
        before, x = nn.Linear(128, 128), torch.randn(3, 128)
        decoded = copy.deepcopy(base)
        phiquant.quantize_(base, PhiConfig(exact=exact))
        decoded.weight.data.copy_(base.weight)
        modules = (before, down, up)
        grads = []
        for layer in (base, decoded):
            hidden = before(x)
            (layer(hidden) + up(down(hidden))).square().sum().backward()
            grads.append([module.weight.grad.clone() for module in modules] + [layer.bias.grad])
            for module in modules:
                module.zero_grad()
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing(self, reentrant: bool, exact: bool) -> None:
        model = nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 64))
        phiquant.quantize_(model, PhiConfig(exact=exact))
        x, y = (torch.ones(2, 128, requires_grad=True) for _ in range(2))
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        model(y).square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)

    def test_an_optimizer_leaves_it_alone(self) -> None:
        model = nn.Linear(128, 8)
        phiquant.quantize_(model)
        kept = model.weight.detach().clone()
        bias = model.bias.detach().clone()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        model(torch.ones(2, 128)).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(model.weight, kept)
        assert not torch.equal(model.bias, bias)


class TestTorchao:
    """torchao.quantization.quantize_, which knows neither names nor ties."""

    def test_linear_layers(self) -> None:
        model = TiedModel()
        torchao_quantize_(model.layers, PhiConfig(index_bits=5))
        assert all(is_compressed(layer) for layer in model.layers)
        assert model.layers[0].weight.index_bits == 5
        assert not is_compressed(model.embed)
        assert model(torch.arange(3)).isfinite().all()

    def test_it_gives_the_planes_that_phiquant_gives(self) -> None:
        model = nn.Sequential(nn.Linear(128, 8))
        other = copy.deepcopy(model)
        torchao_quantize_(model, PhiConfig())
        phiquant.quantize_(other)
        assert torch.equal(model[0].weight, other[0].weight)

    def test_embeddings(self) -> None:
        model = nn.Sequential(nn.Embedding(10, 128))
        torchao_quantize_(
            model,
            PhiConfig(deviation_bits=0),
            lambda module, name: isinstance(module, nn.Embedding),
        )
        assert model[0].weight.deviation_bits == 4

    def test_twice(self) -> None:
        model = nn.Sequential(nn.Linear(128, 8))
        torchao_quantize_(model, PhiConfig())
        weight = model[0].weight
        torchao_quantize_(model, PhiConfig(index_bits=3))
        assert phiquant.quantize_(model).compressed == []
        assert model[0].weight is weight

    def test_a_configuration_for_every_name(self) -> None:
        model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4)))
        configs = {
            "0": PhiConfig(index_bits=2),
            "1.weight": PhiConfig(index_bits=3),
            "re:.*2": PhiConfig(index_bits=5),
        }
        torchao_quantize_(model, FqnToConfig(configs), filter_fn=None)
        bits = [m.weight.index_bits if is_compressed(m) else None for m in model]
        assert bits == [2, 3, 5, None]
        assert model(torch.randn(2, 128)).isfinite().all()

    @pytest.mark.parametrize(
        ("make", "name", "reason"),
        [
            (lambda: nn.Linear(16, 8), "0.weight", "would not shrink"),
            (lambda: nn.Linear(128, 8), "0.bias", "a bias is not a weight matrix"),
            (lambda: nn.Conv1d(64, 64, 3, groups=64), "0.weight", "would not shrink (rows of 3"),
            (lambda: nn.GRU(64, 64), "0.weight_ih_l0", "GRU runs in a fused kernel"),
            (lambda: nn.Linear(128, 8).double(), "0.weight", "got torch.float64"),
        ],
    )
    def test_what_it_leaves_alone_is_logged(
        self,
        make: Callable[[], nn.Module],
        name: str,
        reason: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        model = nn.Sequential(make())
        torchao_quantize_(model, FqnToConfig({name: PhiConfig()}), filter_fn=None)
        assert untouched(model)
        (record,) = (r for r in caplog.records if r.name == "phiquant")
        assert reason in record.getMessage()
        assert type(model[0]).__name__ in record.getMessage()

    def test_exact_weights_are_compared_and_may_be_left_alone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = nn.Sequential(nn.Linear(512, 8).bfloat16(), nn.Linear(512, 8).bfloat16())
        model[0].weight.data = noise(8, 512)
        kept = model[1].weight.data.clone()
        torchao_quantize_(model, PhiConfig(exact=True))
        assert not is_compressed(model[0])
        assert same_bits(model[1].weight.dequantize(), kept)
        assert "is left alone: its exact form would grow to" in caplog.text

    def test_bad_values_name_the_module(self) -> None:
        model = nn.Sequential(nn.Linear(128, 8))
        model[0].weight.data[0, 0] = float("nan")
        pattern = r"Linear\(in_features=128, out_features=8, bias=True\)\.weight: holds NaN"
        with pytest.raises(ValueError, match=pattern):
            torchao_quantize_(model, PhiConfig())

    def test_its_own_tensors_are_left_alone(self) -> None:
        from torchao.quantization import Int8WeightOnlyConfig

        model = nn.Sequential(nn.Linear(128, 8), nn.Linear(8, 128))
        torchao_quantize_(model[:1], Int8WeightOnlyConfig())
        kept = model[0].weight
        report = phiquant.quantize_(model)
        assert model[0].weight is kept
        assert report.skipped[0].reason.endswith("is not a plain tensor")
