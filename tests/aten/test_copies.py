"""Copies and comparisons: other dtypes and devices, plain tensors, state dicts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.aten.support import silently
from tests.support import DTYPES, compressed, same_bits, weight, with_specials


class TestCopies:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_another_dtype_changes_only_what_it_decodes_to(
        self, matrix: PhiTensor, dtype: torch.dtype
    ) -> None:
        changed = matrix.to(dtype)
        assert isinstance(changed, PhiTensor)
        assert (changed.dtype, changed.stored_dtype) == (dtype, torch.float32)
        assert torch.equal(changed.dequantize(), matrix.dequantize().to(dtype))
        assert torch.equal(changed.float(), matrix)
        assert torch.equal(matrix.t().to(dtype).dequantize(), changed.dequantize().t())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64])
    def test_dtypes_it_cannot_decode_to(self, matrix: PhiTensor, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=rf"^block\.weight: .*decodes to bfloat16.*got {dtype}"):
            matrix.to(dtype)

    @torch.inference_mode()
    def test_inference_mode_changes_nothing(self, matrix: PhiTensor) -> None:
        """torch does not take `to` apart there."""
        assert matrix.to("cpu") is matrix.to(matrix.dtype) is matrix
        away = matrix.to("meta")
        assert isinstance(away, PhiTensor)
        assert (away.device.type, away.index_plane.device.type) == ("meta", "meta")
        assert matrix.to("meta", torch.bfloat16).dtype == torch.bfloat16
        fresh = matrix.to("cpu", copy=True)
        assert torch.equal(fresh, matrix)
        assert fresh.index_plane.data_ptr() != matrix.index_plane.data_ptr()
        model = nn.Sequential(nn.Linear(128, 16))
        phiquant.quantize_(model)
        assert model.to("meta")[0].weight.device.type == "meta"

    def test_models_move(self) -> None:
        model = nn.Sequential(nn.Linear(128, 16))
        phiquant.quantize_(model)
        kept = model[0].weight.dequantize()
        x = torch.randn(3, 128)
        for dtype, move in ((torch.float16, model.half), (torch.bfloat16, model.bfloat16)):
            move()
            assert model[0].weight.dtype == dtype
            assert isinstance(model[0].weight, PhiTensor)
            assert model[0].weight.fqn == "0.weight"
            assert model(x.to(dtype)).dtype == dtype
        assert torch.equal(model.float()[0].weight.dequantize(), kept)
        assert model.to("cpu").cpu()[0].weight.cpu() is model[0].weight
        with pytest.raises(TypeError, match=r"^0\.weight: a compressed weight decodes to"):
            model.double()
        assert model.to("meta")[0].weight.device.type == "meta"
        assert model(x.to("meta")).shape == (3, 16)
        roomy = model.to_empty(device="cpu")[0].weight
        assert isinstance(roomy, PhiTensor)
        assert roomy.device.type == "cpu"

    def test_a_clone_has_its_own_memory(self, matrix: PhiTensor) -> None:
        clone = matrix.clone()
        assert torch.equal(clone, matrix)
        clone.index_plane.zero_()
        assert not torch.equal(clone, matrix)

    def test_equal_compares_planes_and_what_reads_them(self, matrix: PhiTensor) -> None:
        assert torch.equal(matrix, matrix.clone())
        assert torch.equal(matrix, matrix.dequantize())
        assert torch.equal(matrix.dequantize(), matrix)
        for other in (
            matrix.at(0),
            matrix.t(),
            matrix[:8],
            matrix._with(exponent=-9),
            compressed(16, 192, group_size=32),
            PhiTensor.from_hp(weight(16, 192, seed=1)),
            torch.zeros(16, 192),
        ):
            assert not torch.equal(matrix, other)

    def test_a_plain_tensor_takes_decoded_values(self, matrix: PhiTensor) -> None:
        plain = torch.zeros(16, 192)
        assert torch.equal(plain.copy_(matrix), matrix.dequantize())
        plain = torch.zeros(20, 192, dtype=torch.bfloat16)
        plain[:16] = matrix
        assert torch.equal(plain[:16], matrix.dequantize().bfloat16())

    @pytest.mark.parametrize(
        ("source", "why"),
        [
            (lambda: weight(16, 192), "is a plain torch.float32 tensor"),
            (lambda: compressed(16, 128), r"has shape \(16, 128\) instead of \(16, 192\)"),
            (lambda: compressed(16, 192, index_bits=5), "has index_bits 5 instead of 4"),
            (lambda: compressed(16, 192, deviation_bits=8), "has deviation_bits 8 instead of 4"),
            (lambda: compressed(16, 192, grid="golden"), "has grid 'golden' instead of 'phi'"),
        ],
    )
    def test_what_cannot_be_copied_into_it(
        self, matrix: PhiTensor, source: Callable[[], Tensor], why: str
    ) -> None:
        kept = matrix.clone()
        with pytest.raises(ValueError, match=rf"^block\.weight: cannot be overwritten, .*{why}"):
            matrix.copy_(source())
        assert torch.equal(matrix, kept)

    def test_planes_of_another_exponent_leave_aliases_right(self, matrix: PhiTensor) -> None:
        alias, kept = matrix.detach(), matrix.dequantize()
        huge = PhiTensor.from_hp(weight(16, 192, seed=1) * 1e6)
        assert huge.exponent != matrix.exponent
        matrix.copy_(huge)
        assert torch.equal(matrix, huge)
        assert torch.equal(alias.dequantize(), kept)

    def test_an_exact_weight_takes_a_remainder_of_another_size(self) -> None:
        tensor, other = compressed(8, 600, exact=True), weight(8, 600, seed=1, dtype=torch.float16)
        alias, kept = tensor.detach(), tensor.dequantize()
        source = PhiTensor.from_hp(with_specials(other), PhiConfig(exact=True))
        tensor.copy_(source)
        assert torch.equal(tensor, source)
        assert (tensor.dtype, tensor.stored_dtype) == (torch.float32, torch.float16)
        assert tensor.verify()
        assert same_bits(alias.dequantize(), kept)
        same = source.clone()
        pointer = same.remainder_plane.data_ptr()
        same.copy_(source)
        assert same.remainder_plane.data_ptr() == pointer

    def test_an_exact_weight_and_a_lossy_one_do_not_mix(self) -> None:
        exact, lossy = compressed(8, 600, exact=True), compressed(8, 600)
        with pytest.raises(ValueError, match="because the source has no remainder; load a plain"):
            exact.copy_(lossy)
        with pytest.raises(ValueError, match="the source has a remainder, and this has none"):
            lossy.copy_(exact)

    def test_a_slice_of_an_exact_weight_cannot_be_overwritten(self) -> None:
        tensor = compressed(8, 600, exact=True)
        tensor.fqn = "block.weight"
        with pytest.raises(RuntimeError, match=r"^block\.weight: cannot be overwritten through"):
            tensor[2:4].copy_(compressed(8, 600, exact=True, fit="index")[4:6])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_an_exact_weight_of_another_dtype_keeps_its_bits(self, dtype: torch.dtype) -> None:
        original = weight(4, 600, dtype=torch.bfloat16)
        tensor = PhiTensor.from_hp(original, PhiConfig(exact=True))
        changed = tensor.to(dtype)
        assert changed.stored_dtype == torch.bfloat16
        assert same_bits(changed.dequantize(), original.to(dtype))
        assert changed.verify()
        assert same_bits(changed.bfloat16().dequantize(), original)

    def test_room_for_an_exact_weight(self) -> None:
        tensor = compressed(4, 600, exact=True)
        room = torch.empty_like(tensor.to("meta"), device="cpu")
        assert room.is_exact
        assert room.copy_(tensor).verify()

    def test_new_tensors_of_its_kind_are_plain(self, matrix: PhiTensor) -> None:
        def make() -> list[Tensor]:
            return [
                torch.zeros_like(matrix),
                torch.ones_like(matrix, dtype=torch.int8),
                torch.full_like(matrix, 2.0),
                torch.randn_like(matrix.t()),
                matrix.new_zeros(3),
                matrix.new_full((2, 2), 7.0),
            ]

        made = silently(make)
        assert all(type(t) is Tensor for t in made)
        assert [tuple(t.shape) for t in made] == [(16, 192)] * 3 + [(192, 16), (3,), (2, 2)]
        assert made[1].dtype == torch.int8
        assert made[0].is_contiguous()
        assert torch.equal(made[2], torch.full((16, 192), 2.0))

    def test_values_for_python(self, matrix: PhiTensor) -> None:
        dense = matrix.dequantize()
        assert matrix.tolist() == dense.tolist()
        assert matrix[3, 5].item() == dense[3, 5].item()
        assert len(matrix) == 16
