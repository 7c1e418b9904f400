"""PhiTensor with exact=True: every bit of the original, and the tiers inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from phiquant import PhiConfig, PhiTensor
from tests.support import DTYPES, compressed, relative, same_bits, weight, with_specials


class TestExact:
    """Every bit of the original comes back."""

    @pytest.mark.parametrize("shape", [(3, 1), (4, 63), (2, 513), (3, 1100), (2, 3, 65)], ids=str)
    @pytest.mark.parametrize("deviation_bits", [2, 4, 8])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_round_trip(
        self, dtype: torch.dtype, deviation_bits: int, shape: tuple[int, ...]
    ) -> None:
        for of in (weight(*shape, dtype=dtype), with_specials(weight(*shape, dtype=dtype))):
            tensor = PhiTensor.from_hp(of, PhiConfig(deviation_bits=deviation_bits, exact=True))
            assert same_bits(tensor.dequantize(), of)
            assert tensor.is_exact

    @pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
    def test_a_narrow_checkpoint_in_fp32_takes_narrow_bits(self, narrow: torch.dtype) -> None:
        of = weight(16, 1024, dtype=narrow)
        tensor = PhiTensor.from_hp(of.float(), PhiConfig(exact=True))
        assert (tensor.dtype, tensor.stored_dtype) == (torch.float32, narrow)
        assert same_bits(tensor.dequantize(), of.float())
        assert same_bits(tensor.dequantize(narrow), of)
        alone = PhiTensor.from_hp(of, PhiConfig(exact=True))
        assert tensor.stored_bytes == alone.stored_bytes
        assert tensor.bits_per_weight < (11.6 if narrow == torch.bfloat16 else 14.6)
        assert torch.equal(tensor.checksum_plane, alone.checksum_plane)

    def test_other_dtypes_are_rounded_once(self) -> None:
        of = weight(8, 100)
        tensor = PhiTensor.from_hp(of, PhiConfig(exact=True))
        for dtype in DTYPES:
            assert same_bits(tensor.dequantize(dtype), of.to(dtype))

    def test_all_planes_are_counted(self) -> None:
        of = with_specials(weight(8, 600))
        tensor = PhiTensor.from_hp(of, PhiConfig(exact=True))
        names = [*tensor.tensor_data_names, *tensor.optional_tensor_data_names]
        planes = [getattr(tensor, name) for name in names if name != "deviation_low_plane"]
        assert tensor.stored_bytes == sum(p.numel() * p.element_size() for p in planes)
        assert tensor.exception_plane.shape[1] == 2
        assert tensor.checksum_plane.nbytes == 16
        assert PhiTensor.from_hp(weight(8, 600), PhiConfig(exact=True)).exception_plane is None

    @pytest.mark.parametrize("deviation_bits", [2, 4, 8])
    def test_the_lossy_tiers_inside(self, deviation_bits: int) -> None:
        of = weight(8, 600)
        tensor = PhiTensor.from_hp(of, PhiConfig(deviation_bits=deviation_bits, exact=True))
        for bits in (deviation_bits, 0):
            tier = tensor.at(bits)
            assert not tier.is_exact
            assert tier.checksum_plane is None
            assert tier.index_plane is tensor.index_plane
            assert tier.bits_per_weight < 4.6 + bits + 0.5
            assert 0 < relative(tier.dequantize(), of) < 0.15
        with pytest.raises(ValueError, match="deviation_bits must be one of"):
            tensor.at(6)

    def test_exceptions_are_there_at_every_tier(self) -> None:
        of = weight(4, 100)
        of[1, 7], of[2, 9], of[3, 0] = float("inf"), float("nan"), float("-inf")
        tensor = PhiTensor.from_hp(of, PhiConfig(exact=True))
        for tier in (tensor, tensor.at(4), tensor.at(0)):
            decoded = tier.dequantize()
            assert torch.equal(decoded.isnan(), of.isnan())
            assert torch.equal(decoded.isinf(), of.isinf())
            assert (decoded[1, 7], decoded[3, 0]) == (float("inf"), float("-inf"))

    def test_only_infinities_and_nans(self) -> None:
        of = torch.tensor([[float("inf"), float("nan"), float("-inf")] * 40])
        assert same_bits(PhiTensor.from_hp(of, PhiConfig(exact=True)).dequantize(), of)

    def test_the_repr_tells(self) -> None:
        tensor = PhiTensor.from_hp(weight(8, 512).bfloat16().float(), PhiConfig(exact=True))
        assert "planes=index 4 + deviation 4 + remainder, " in repr(tensor)
        assert "dtype=torch.float32, stored_dtype=torch.bfloat16, device" in repr(tensor)
        assert "remainder" not in repr(tensor.at(4))

    def test_importance_and_a_view_of_a_weight(self) -> None:
        of = weight(128, 40).t()
        tensor = PhiTensor.from_hp(of, PhiConfig(exact=True), importance=torch.rand(128))
        assert same_bits(tensor.dequantize(), of.contiguous())

    def test_gradients_reach_the_input(self) -> None:
        of, x = weight(8, 100), torch.randn(3, 100)
        tensor = PhiTensor.from_hp(of, PhiConfig(exact=True))
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        nn.functional.linear(ours, tensor).square().sum().backward()
        nn.functional.linear(theirs, of).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)

    def test_the_hash_for_compilers_tells_exact_from_lossy(self) -> None:
        tensor = compressed(8, 100, exact=True)
        hashes = {t._stable_hash_for_caching() for t in (tensor, tensor.at(4), tensor.at(0))}
        assert len(hashes) == 3
