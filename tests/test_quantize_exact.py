"""quantize_ with exact=True: what comes back, what is compared and what is left alone."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

import phiquant
from phiquant import PhiConfig, checksum, encoding
from phiquant import quantize as quantize_module
from tests.support import DTYPES, TiedModel, noise, relative, same_bits, with_specials
from tests.test_quantize import is_compressed


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
        monkeypatch.setattr(checksum, "PART", 256)
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
