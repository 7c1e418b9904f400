"""Report: numbers that equal what the tensors measure, and text that reads in any log."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchao.utils import get_model_size_in_bytes

import phiquant
from phiquant import PhiConfig, PhiTensor, Report
from tests.support import TiedModel, relative, weight


def test_numbers_are_those_of_the_tensors() -> None:
    model = TiedModel()
    original = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = phiquant.quantize_(model, PhiConfig(deviation_bits=2))
    assert [entry.names[0] for entry in report.compressed] == [
        "embed.weight",
        "layers.0.weight",
        "layers.1.weight",
    ]
    for entry in report.compressed:
        tensor = model.get_parameter(entry.names[0])
        assert isinstance(tensor, PhiTensor)
        planes = [plane for plane in tensor.planes if plane is not None]
        assert entry.stored_bytes == sum(p.numel() * p.element_size() for p in planes)
        assert entry.bits_per_weight == tensor.bits_per_weight
        assert entry.original_bytes == original[entry.names[0]].nbytes
        measured = relative(tensor.dequantize(), original[entry.names[0]])
        assert abs(entry.relative_error - measured) < 1e-5 * measured
    assert report.original_bytes == sum(p.nbytes for p in original.values())
    twice = model.head.weight.stored_bytes  # torchao counts a shared weight in every place
    assert report.stored_bytes == get_model_size_in_bytes(model) - twice
    biases = [entry.names for entry in report.skipped]
    assert biases == [("layers.0.bias",), ("layers.1.bias",)]


def test_the_error_of_a_large_weight_is_measured_in_parts() -> None:
    of = torch.randn(3 << 11, 1 << 10)
    tensor = PhiTensor.from_hp(of)
    measured = relative(tensor.dequantize(), of)
    assert abs(phiquant.quantize.relative_error(of, tensor) - measured) < 1e-4 * measured


def test_zero_weights_have_no_error() -> None:
    model = nn.Linear(64, 8, bias=False)
    nn.init.zeros_(model.weight)
    assert phiquant.quantize_(model).compressed[0].relative_error == 0
    assert torch.equal(model.weight.dequantize(), torch.zeros(8, 64)) or (
        model.weight.dequantize().abs().max() < 1e-6
    )


def test_the_text_is_plain_and_complete() -> None:
    model = nn.Sequential(TiedModel(), nn.Conv1d(8, 8, 3, groups=8), nn.LayerNorm(8))
    text = str(phiquant.quantize_(model))
    assert text.isascii()
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.split("\n")
    assert lines[0].startswith("3 parameters compressed to 8.25 bits a weight, 6 left alone: ")
    assert "  0.embed.weight = 0.head.weight  100x128  8.25 bits  error 5." in text
    assert "  1.weight  8x1x3  left alone: would not shrink (rows of 3 in groups of 64)" in lines
    assert lines[-1] == "  5 vectors and scalars left alone, 1.1 kB together"
    assert max(map(len, lines)) < 160


def test_large_vectors_have_a_line_of_their_own() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = (nn.Parameter(torch.ones(n)) for n in (4096, 4095))

    text = str(phiquant.quantize_(nn.Sequential(Scaled(), nn.LSTM(64, 64))))
    assert "  0.large  4096  left alone: Scaled is not a layer whose weights are compr" in text
    assert "0.small" not in text
    reason = "LSTM runs in a fused kernel that takes plain weights only"
    assert f"  1.weight_ih_l0  256x64  left alone: {reason}" in text


def test_sizes_have_fitting_units() -> None:
    large = phiquant.preview(nn.Linear(4096, 4096, device="meta"))
    assert "67.1 MB -> 17.3 MB" in large.summary
    assert "0.0 kB -> 0.0 kB" in Report().summary
    assert Report().bits_per_weight == 0


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 11.3), (torch.float16, 14.3), (torch.float32, 27.3)]
)
def test_the_size_of_an_exact_form_is_said_to_be_an_estimate(
    dtype: torch.dtype, bits: float
) -> None:
    model = nn.Linear(512, 64, bias=False, dtype=dtype)
    model.weight.data = weight(64, 512, dtype=dtype)
    config = PhiConfig(exact=True)
    guess = phiquant.preview(model, config)
    assert guess.compressed[0].estimated
    assert f"compressed to about {bits:.2f} bits a weight" in guess.summary
    assert "-> about " in guess.summary
    assert f"  weight  64x512  about {bits:.2f} bits" in str(guess)
    report = phiquant.quantize_(model, config)
    assert "about" not in str(report)
    assert not report.compressed[0].estimated
    assert report.stored_bytes == model.weight.stored_bytes
    assert report.bits_per_weight == pytest.approx(bits, abs=0.5)


def test_an_exact_weight_has_no_error() -> None:
    report = phiquant.quantize_(nn.Linear(128, 16), PhiConfig(exact=True))
    assert report.compressed[0].relative_error == 0.0
    assert "error 0.00e+00" in str(report)


def test_a_preview_has_no_errors_in_it() -> None:
    entry = phiquant.preview(nn.Linear(128, 64)).compressed[0]
    assert entry.relative_error is None
    assert "error" not in str(phiquant.preview(nn.Linear(128, 64)))
