"""Methods give every tier of a nested format, with its bits."""

import pytest
import torch
from torch import nn

from benchmarks.matrices import matrices, sqnr
from benchmarks.methods import decode_model, label, methods, peer, phi
from phiquant.config import PhiConfig
from phiquant.tensor import PhiTensor


def test_tiers_of_one_encoding() -> None:
    weight = torch.randn(8, 128)
    tiers = phi("phi 4+8", (0, 4, 8), deviation_bits=8).tiers(weight)
    assert [round(tier.bits, 2) for tier in tiers.values()] == [4.25, 8.25, 12.25]
    assert list(tiers) == ["phi 4+8: index", "phi 4+8: +4", "phi 4+8: +8"]
    quality = [sqnr(weight, tier.weight) for tier in tiers.values()]
    assert quality[0] > 18
    assert quality[1] > quality[0] + 20
    assert quality[2] > quality[1] + 20
    expected = PhiTensor.from_hp(weight, PhiConfig(deviation_bits=8)).dequantize()
    assert torch.equal(tiers[label("phi 4+8", 8)].weight, expected)


def test_every_method_decodes_a_short_last_group() -> None:
    weight = torch.randn(64, 100)
    seen = set()
    for method in methods():
        for key, tier in method.tiers(weight).items():
            assert tier.weight.shape == weight.shape
            assert tier.weight.dtype == torch.float32
            assert sqnr(weight, tier.weight) > 5, key
            assert key not in seen
            seen.add(key)
    assert {"phi 4+4: index", "phi 4+4: +4", "NF4 absmax g64", "int8 g64"} <= seen


def test_embeddings_go_another_way() -> None:
    model = nn.Sequential(nn.Embedding(32, 64), nn.Linear(64, 32))
    found = matrices(model, embeddings=True)
    narrow, wide = phi("phi 4+2", (0, 2), deviation_bits=2), peer("int8 g64")
    decoded = decode_model(found, narrow, wide)
    assert list(decoded) == ["phi 4+2: index", "phi 4+2: +2"]
    for tiers, bits in zip(decoded.values(), (4.25, 6.25), strict=True):
        assert tiers["0.weight"].bits == 8.25
        assert tiers["1.weight"].bits == pytest.approx(bits)
    assert decode_model(found, narrow)["phi 4+2: index"]["0.weight"].bits == 4.25
