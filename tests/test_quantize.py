"""quantize_ and preview on whole models: what changes, what stays shared, and bad models."""

from __future__ import annotations

import copy
import logging
import re
import weakref
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
from phiquant import PhiConfig, PhiTensor, encoding
from phiquant import quantize as quantize_module
from tests.support import DTYPES, TiedModel, noise, relative, same_bits, with_specials


def is_compressed(module: nn.Module) -> bool:
    return isinstance(module.weight, PhiTensor)


def untouched(model: nn.Module) -> bool:
    return not any(isinstance(p, PhiTensor) for p in model.parameters())


class TestInPlace:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_outputs_are_those_of_the_decoded_weights(self, dtype: torch.dtype) -> None:
        model = TiedModel().to(dtype)
        decoded = copy.deepcopy(model)
        indices = torch.arange(12).view(3, 4)
        before = model(indices)
        report = phiquant.quantize_(model)
        for entry in report.compressed:
            value = model.get_parameter(entry.names[0]).dequantize()
            decoded.get_parameter(entry.names[0]).data.copy_(value)
        assert relative(model(indices), decoded(indices)) < 8 * torch.finfo(dtype).eps
        error = relative(model(indices), before)
        assert error < 0.02 + 2 * torch.finfo(dtype).eps
        assert dtype != torch.float32 or error > 1e-4

    def test_shared_parameters_stay_shared(self) -> None:
        model = TiedModel()
        report = phiquant.quantize_(model, PhiConfig(deviation_bits=0))
        assert model.embed.weight is model.head.weight
        assert model.embed.weight.deviation_bits == 4
        assert model.layers[0].weight.deviation_bits == 0
        assert report.compressed[0].names == ("embed.weight", "head.weight")
        assert len(list(model.parameters())) == 5
        for move in (copy.deepcopy, nn.Module.half):
            moved = move(model)
            assert moved.embed.weight is moved.head.weight
            assert isinstance(moved.embed.weight, PhiTensor)

    def test_it_is_idempotent(self) -> None:
        model = TiedModel()
        first = phiquant.quantize_(model)
        planes = [p.index_plane for p in model.parameters() if isinstance(p, PhiTensor)]
        again = phiquant.quantize_(model, PhiConfig(index_bits=5))
        assert again.compressed == []
        assert {s.reason for s in again.skipped if len(s.shape) > 1} == {
            "embed.weight: already compressed",
            "already compressed",
        }
        assert again.stored_bytes == again.original_bytes == first.stored_bytes
        after = [p.index_plane for p in model.parameters() if isinstance(p, PhiTensor)]
        assert all(a is b for a, b in zip(planes, after, strict=True))

    def test_it_goes_on_where_it_was_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = TiedModel(layers=3)
        calls = []

        def interrupted(*arguments: Any) -> nn.Parameter:
            calls.append(arguments)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return compress(*arguments)

        compress = quantize_module.compress_parameter
        monkeypatch.setattr(quantize_module, "compress_parameter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            phiquant.quantize_(model)
        monkeypatch.undo()
        rest = phiquant.quantize_(model)
        assert [entry.names[0] for entry in rest.compressed] == [
            "layers.1.weight",
            "layers.2.weight",
        ]

    def test_each_original_is_freed_before_the_next(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = TiedModel(layers=3)
        originals = [weakref.ref(p) for p in model.parameters() if p.dim() > 1]
        alive = []

        def counting(*arguments: Any) -> nn.Parameter:
            alive.append(sum(original() is not None for original in originals))
            return compress(*arguments)

        compress = quantize_module.compress_parameter
        monkeypatch.setattr(quantize_module, "compress_parameter", counting)
        phiquant.quantize_(model)
        assert alive == [4, 3, 2, 1]
        assert [original() for original in originals] == [None] * 4

    def test_gradients_and_hooks_of_the_original_go_with_it(self) -> None:
        model = nn.Linear(128, 8)
        model(torch.ones(1, 128)).sum().backward()
        phiquant.quantize_(model)
        assert model.weight.grad is None
        assert model.bias.grad is not None
        assert not model.weight.requires_grad

    def test_a_filter_leaves_modules_alone(self) -> None:
        model = TiedModel()
        report = phiquant.quantize_(model, filter_fn=lambda module, name: name == "layers.1")
        assert [is_compressed(layer) for layer in model.layers] == [False, True]
        assert not is_compressed(model.embed)
        assert report.skipped[0].reason == "embed.weight: left out by filter_fn"

    def test_a_preview_says_what_will_be_done_and_does_nothing(self) -> None:
        with torch.device("meta"):
            meta = TiedModel()
        model = TiedModel()
        config = PhiConfig(3, 2, 32)
        previews = [
            phiquant.preview(m, config, lambda m, n: n != "layers.0") for m in (model, meta)
        ]
        assert untouched(model)
        report = phiquant.quantize_(model, config, lambda m, n: n != "layers.0")
        for preview in previews:
            assert preview.skipped == report.skipped
            assert preview.stored_bytes == report.stored_bytes
            assert preview.bits_per_weight == report.bits_per_weight
            assert [c.names for c in preview.compressed] == [c.names for c in report.compressed]
            assert [c.stored_bytes for c in preview.compressed] == [
                c.stored_bytes for c in report.compressed
            ]

    def test_models_with_nothing_to_do(self) -> None:
        for model in (nn.Module(), nn.Sequential(), nn.ReLU(), nn.LayerNorm(8), nn.Linear(4, 4)):
            report = phiquant.quantize_(model)
            assert report.compressed == []
            assert report.stored_bytes == report.original_bytes
            assert untouched(model)


class TestTelling:
    def test_a_bar_is_shown_where_it_is_wanted(self, capsys: pytest.CaptureFixture[str]) -> None:
        phiquant.quantize_(TiedModel(), progress=True)
        shown = capsys.readouterr().err
        assert "phiquant: compress: 100%" in shown
        assert "182k/182k" in shown  # bytes of the three weights

    def test_without_a_terminal_there_is_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        phiquant.quantize_(TiedModel())
        phiquant.quantize_(TiedModel(), progress=False)
        assert capsys.readouterr() == ("", "")

    def test_without_a_terminal_a_wanted_one_is_short(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        phiquant.quantize_(TiedModel(layers=40), progress=True)
        assert capsys.readouterr().err.count("\r") <= 3

    def test_the_log_has_one_line(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "phiquant"):
            report = phiquant.quantize_(TiedModel())
        assert [record.getMessage() for record in caplog.records] == [report.summary]
        assert "\n" not in report.summary


class TestBadModels:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_nothing_is_changed_if_a_weight_is_not_finite(self, value: float) -> None:
        model = TiedModel()
        model.layers[1].weight.data[3, 5] = value
        with pytest.raises(ValueError, match=r"^layers\.1\.weight: holds NaN or infinity"):
            phiquant.quantize_(model)
        assert untouched(model)

    def test_nothing_is_changed_if_a_weight_is_on_the_meta_device(self) -> None:
        model = nn.Sequential(nn.Linear(128, 8), nn.Linear(128, 8, device="meta"))
        with pytest.raises(ValueError, match=r"^1\.weight: is on the meta device"):
            phiquant.quantize_(model)
        assert untouched(model)

    def test_what_is_left_alone_may_be_on_any_device_and_hold_anything(self) -> None:
        model = nn.Sequential(
            nn.Linear(128, 8), nn.Linear(128, 8, device="meta"), nn.Conv1d(4, 4, 3)
        )
        model[2].weight.data.fill_(float("nan"))
        phiquant.quantize_(model, filter_fn=lambda module, name: name == "0")
        assert is_compressed(model[0])

    def test_odd_dtypes_are_reported(self) -> None:
        model = nn.Sequential(nn.Linear(128, 8).double(), nn.Linear(128, 8, dtype=torch.complex64))
        model.register_parameter(
            "codes", nn.Parameter(torch.ones(64, 64, dtype=torch.int8), requires_grad=False)
        )
        report = phiquant.quantize_(model)
        assert report.compressed == []
        reasons = {s.names[0]: s.reason for s in report.skipped}
        assert "torch.float64" in reasons["0.weight"]
        assert "torch.complex64" in reasons["1.weight"]
        assert reasons["codes"] == "Sequential is not supported yet"

    @pytest.mark.parametrize("model", [torch.ones(2, 64), {}, None])
    def test_what_is_no_model_is_refused(self, model: object) -> None:
        for call in (phiquant.quantize_, phiquant.preview):
            with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got"):
                call(model)

    def test_a_filter_that_raises_changes_nothing(self) -> None:
        def picky(module: nn.Module, name: str) -> bool:
            if name == "layers.1":
                raise KeyError(name)
            return True

        model = TiedModel()
        with pytest.raises(KeyError):
            phiquant.quantize_(model, filter_fn=picky)
        assert untouched(model)


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
            assert [c.names for c in phiquant.quantize_(model).compressed] == [("out_proj.weight",)]
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


class TestExact:
    """exact=True: the model that comes out is the one that went in."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_outputs_are_those_of_the_original(self, dtype: torch.dtype) -> None:
        model = TiedModel(words=30, layers=1).to(dtype)
        original, indices = copy.deepcopy(model), torch.arange(12).view(3, 4)
        report = phiquant.quantize_(model, PhiConfig(exact=True))
        assert [entry.relative_error for entry in report.compressed] == [0.0, 0.0]
        for entry in report.compressed:
            plain = original.get_parameter(entry.names[0])
            assert same_bits(model.get_parameter(entry.names[0]).dequantize(), plain.data)
        assert relative(model(indices), original(indices)) < 8 * torch.finfo(dtype).eps

    def test_a_weight_with_infinities_and_nans(self) -> None:
        model = nn.Linear(128, 16)
        for place, value in ((3, "inf"), (5, "nan"), (7, "-inf"), (9, "-0.0")):
            model.weight.data[place, place] = float(value)
        kept = model.weight.data.clone()
        report = phiquant.quantize_(model, PhiConfig(exact=True))
        assert report.compressed[0].relative_error == 0.0
        assert same_bits(model.weight.dequantize(), kept)

    @pytest.mark.parametrize("break_it", ["remainder", "index"])
    def test_every_bit_is_compared(self, break_it: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An encoder that is wrong by one bit anywhere is found before the original is freed."""
        model = nn.Sequential(nn.Linear(128, 16))
        kept, encode = model[0].weight, encoding.encode

        def broken(*arguments: Any) -> Any:
            planes = encode(*arguments)
            plane = getattr(planes, break_it)
            plane.view(-1)[3] ^= 4
            return planes

        monkeypatch.setattr(encoding, "encode", broken)
        with pytest.raises((RuntimeError, ValueError), match=r"^0\.weight: "):
            phiquant.quantize_(model, PhiConfig(exact=True))
        assert model[0].weight is kept

    def test_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quantize_module, "PART", 256)
        model = nn.Linear(128, 15)
        kept = model.weight.data.clone()
        phiquant.quantize_(model, PhiConfig(exact=True))
        kept[14, 100] += 1e-7
        with pytest.raises(RuntimeError, match="does not decode to the original"):
            quantize_module.check_every_bit(kept, model.weight.data)

    def test_what_would_grow_is_left_alone_and_reported(self) -> None:
        model = nn.Sequential(nn.Linear(512, 8).bfloat16(), nn.Linear(512, 8).bfloat16())
        model[0].weight.data = noise(8, 512)
        kept = model[0].weight
        report = phiquant.quantize_(model, PhiConfig(exact=True))
        assert model[0].weight is kept
        assert is_compressed(model[1])
        (entry,) = (s for s in report.skipped if s.names == ("0.weight",))
        assert re.fullmatch(
            r"its exact form would grow to [12]\d\.\d\d bits a weight from 16", entry.reason
        )
        assert entry.bytes == kept.nbytes
        assert [c.names for c in report.compressed] == [("1.weight",)]

    def test_a_weight_in_fp32_may_take_32_bits(self) -> None:
        model = nn.Linear(512, 8, bias=False)
        model.weight.data = noise(8, 512).float()
        (entry,) = phiquant.quantize_(model, PhiConfig(exact=True)).compressed
        assert 16.1 < entry.bits_per_weight < 32
        assert model.weight.stored_dtype == torch.bfloat16

    def test_one_huge_weight_leaves_the_others_no_scale(self) -> None:
        model = nn.Linear(512, 8, bias=False)
        model.weight.data = with_specials(model.weight.data)
        report = phiquant.quantize_(model, PhiConfig(exact=True))
        assert re.search(r"would grow to \d+\.\d\d bits a weight from 32", report.skipped[0].reason)

    def test_a_short_row_may_not_shrink(self) -> None:
        report = phiquant.quantize_(nn.Linear(8, 64, bias=False), PhiConfig(exact=True))
        assert report.skipped[0].reason.startswith("would not shrink")

    def test_embeddings_too(self) -> None:
        model = TiedModel(words=20, layers=1)
        phiquant.quantize_(model, PhiConfig(deviation_bits=2, exact=True))
        assert model.embed.weight is model.head.weight
        assert model.embed.weight.deviation_bits == 4
        assert model.embed.weight.is_exact
        assert model.layers[0].weight.deviation_bits == 2

    def test_states_travel_between_models(self) -> None:
        source, target = (TiedModel(words=20, layers=1) for _ in range(2))
        for model in (source, target):
            phiquant.quantize_(model, PhiConfig(exact=True))
        for assign in (False, True):
            target.load_state_dict(source.state_dict(), assign=assign)
            assert torch.equal(target.layers[0].weight, source.layers[0].weight)
            assert phiquant.verify(target).complete


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
            (lambda: nn.Conv1d(64, 64, 3), "0.weight", "Conv1d is not supported yet"),
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
