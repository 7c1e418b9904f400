"""What FSDP2 does to a parameter."""

from __future__ import annotations

import pytest
import torch

from phiquant import PhiTensor
from phiquant.aten.rooms import FlatView
from tests.support import compressed, same_bits


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
class TestRoom:
    @pytest.mark.parametrize("rows", [5, 7], ids=["full", "with rows to spare"])
    def test_takes_rows(self, exact: bool, rows: int) -> None:
        source = compressed(5, 1100, exact=exact)
        room = source.new_zeros(rows, 1100)
        room.narrow(0, 0, 5).copy_(source)
        assert isinstance(room, PhiTensor)
        assert same_bits(room[:5].dequantize(), source.dequantize())
        assert room.shape == (rows, 1100)
        assert torch.all(room.dequantize()[5:].abs() < 1e-7)

    def test_shares_no_memory_with_what_it_took(self, exact: bool) -> None:
        source = compressed(5, 128, exact=exact)
        room = source.new_zeros(5, 128)
        room.narrow(0, 0, 5).copy_(source)
        planes = zip(room.planes, source.planes, strict=True)
        assert not any(a.data_ptr() == b.data_ptr() for a, b in planes if a is not None)

    def test_takes_them_once(self, exact: bool) -> None:
        source = compressed(5, 128, exact=exact)
        room = source.new_zeros(5, 128)
        room.narrow(0, 0, 5).copy_(source)
        assert room.narrow(0, 0, 5).room is None


def test_zeros_of_other_columns_or_dtypes_are_plain() -> None:
    weight = compressed(5, 128)
    for zeros in (weight.new_zeros(5, 64), weight.new_zeros(3), weight.new_zeros(0, 128)):
        assert type(zeros) is torch.Tensor
    assert type(weight.new_zeros(5, 128, dtype=torch.int64)) is torch.Tensor


def test_a_flat_view_decodes_when_it_is_used() -> None:
    weight = compressed(5, 130)
    flat = weight.view(-1)
    assert isinstance(flat, FlatView)
    assert flat.shape == (650,)
    assert flat.detach().weight is weight
    with pytest.warns(UserWarning, match="has no compressed form"):
        assert torch.equal(flat + 0, weight.dequantize().view(-1))
    with pytest.raises(RuntimeError, match="writes to a compressed weight in place"):
        flat.zero_()
    assert "PhiTensor" in repr(flat)


def test_the_own_stride_is_a_view() -> None:
    weight = compressed(5, 128)
    view = weight.as_strided((5, 128), (128, 1))
    assert isinstance(view, PhiTensor)
    assert view.index_plane is weight.index_plane
