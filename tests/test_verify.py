"""verify: says yes for the original alone, no for anything else, and why where it cannot tell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phiquant
from phiquant import PhiConfig, PhiTensor, checksum
from tests.support import DTYPES, TiedModel, compressed, weight, with_specials


@pytest.fixture
def model() -> nn.Module:
    model = TiedModel(words=20, width=128, layers=1)
    phiquant.quantize_(model, PhiConfig(exact=True))
    return model


class TestTensors:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(3, 65), (2, 3, 513), (4, 1)], ids=str)
    def test_an_encoded_weight_verifies(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        of = with_specials(weight(*shape, dtype=dtype))
        tensor = PhiTensor.from_hp(of, PhiConfig(exact=True))
        assert tensor.verify()
        assert tensor.mT.verify()
        assert tensor.half().verify()
        assert tensor.clone().verify()
        assert tensor.view(-1, shape[-1]).verify()

    def test_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tensor = compressed(7, 65, exact=True)
        monkeypatch.setattr(checksum, "PART", 2 * 65)
        assert tensor.verify()

    def test_a_flipped_bit_does_not(self) -> None:
        tensor = compressed(4, 64, exact=True)
        tensor.checksum_plane[3] ^= 1
        assert not tensor.verify()

    def test_another_payload_does_not(self) -> None:
        tensor = compressed(4, 64, exact=True)
        tensor.remainder_plane[5] ^= 1
        assert not tensor.verify()

    def test_corrupt_planes_do_not(self) -> None:
        tensor = compressed(4, 64, exact=True)
        tensor.start_plane[0] = 1 << 40
        assert not tensor.verify()

    def test_what_cannot_be_told_is_an_error(self) -> None:
        tensor = compressed(4, 64, exact=True)
        tensor.fqn = "head.weight"
        for made, why in (
            (tensor.at(4), "the remainder is not loaded: it was compressed without exact=True, or"),
            (tensor[1:3], "this is a slice, and the checksum is that of the whole weight"),
            (tensor.to("meta"), "it is on the meta device and holds no values"),
        ):
            with pytest.raises(ValueError, match=rf"^head\.weight: cannot be verified: {why}"):
                made.verify()


class TestModels:
    def test_an_exact_model_verifies(self, model: nn.Module) -> None:
        result = phiquant.verify(model)
        assert result.verified == ["embed.weight", "layers.0.weight"]
        assert result.complete
        assert str(result) == "2 weights verified bit for bit, 0 failed, 0 cannot be verified"

    def test_every_kind_is_named(self, model: nn.Module) -> None:
        model.layers.append(nn.Linear(128, 128))
        phiquant.quantize_(model)
        model.layers[0].weight.remainder_plane[9] ^= 255
        result = phiquant.verify(model)
        assert result.verified == ["embed.weight"]
        assert list(result.failed) == ["layers.0.weight"]
        assert list(result.unverifiable) == ["layers.1.weight"]
        assert not result.complete
        lines = str(result).split("\n")
        assert lines[0] == "1 weights verified bit for bit, 1 failed, 1 cannot be verified"
        assert lines[1].startswith("  layers.0.weight  FAILED: ")
        assert lines[2].startswith("  layers.1.weight  cannot be verified: the remainder is not")

    def test_a_corrupt_block_is_named(self, model: nn.Module) -> None:
        model.layers[0].weight.start_plane[0] = -1
        found = phiquant.verify(model).failed["layers.0.weight"]
        assert found.startswith("layers.0.weight: remainder: block 0 ")

    def test_a_shallow_view_cannot_be_verified(self, model: nn.Module) -> None:
        result = phiquant.verify(phiquant.view(model, "deviation"))
        assert not result.verified
        assert list(result.unverifiable) == ["embed.weight", "layers.0.weight"]

    def test_what_is_no_compressed_model_is_refused(self) -> None:
        with pytest.raises(ValueError, match="model: no parameter is compressed"):
            phiquant.verify(nn.Linear(4, 4))
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got Tensor"):
            phiquant.verify(torch.ones(2, 2))  # type: ignore[arg-type]
