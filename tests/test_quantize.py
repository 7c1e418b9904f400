"""quantize_ and preview on whole models: what changes, what stays shared, and bad models."""

from __future__ import annotations

import copy
import io
import logging
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import phiquant
from phiquant import PhiConfig, PhiTensor
from phiquant import quantize as quantize_module
from tests.support import DTYPES, TiedModel, relative


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

    @pytest.mark.parametrize("short", [0.0, 60.0])
    def test_on_a_terminal_a_long_compression_shows_its_rate(
        self, short: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = io.StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr("phiquant.quantize._SHORT", short)
        phiquant.quantize_(TiedModel(layers=4))
        assert ("B/s" in terminal.getvalue()) == (short == 0)

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
        assert reasons["codes"] == "Sequential is not a layer whose weights are compressed"

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
