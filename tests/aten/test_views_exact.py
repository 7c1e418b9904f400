"""Views of weights that come back bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from phiquant import PhiConfig, PhiTensor
from tests.aten.support import silently
from tests.support import compressed, same_bits, weight, with_specials

EXACT_VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "rows": lambda w: w[3:11],
    "a row": lambda w: w[5],
    "every third row": lambda w: w[1::3],
    "no rows": lambda w: w[4:4],
    "all rows": lambda w: w[:],
    "the first block": lambda w: w[:, :512],
    "a block to the end": lambda w: w[:, 512:],
    "rows of blocks": lambda w: w[2:5, 512:1024],
    "blocks of rows": lambda w: w[:, 512:][2:5],
    "rows of rows": lambda w: w[2:9][1:4],
    "rows of every other row": lambda w: w[::2][2:4],
    "a row of every other": lambda w: w[1::2][3],
    "blocks of blocks": lambda w: w[:, 512:][:, 512:],
    "the transpose": lambda w: w.t(),
    "blocks of the transpose": lambda w: w.t()[512:, 2:9],
    "experts": lambda w: w.view(3, 4, -1),
    "an expert": lambda w: w.view(3, 4, -1)[1],
    "rows of experts": lambda w: w.view(3, 4, -1)[:, 1:3],
    "a row of every expert": lambda w: w.view(3, 4, -1)[:, 2],
    "experts' blocks, transposed": lambda w: w.view(3, 4, -1).mT[1:, :512, 1:3],
    "chunk": lambda w: w.chunk(3)[1],
    "split": lambda w: w.split([5, 7])[1],
    "split of blocks": lambda w: w.split(512, dim=1)[2],
    "clone of rows": lambda w: w[3:5].clone(),
    "detach": lambda w: w.detach(),
}


class TestExactViews:
    """The same views of weights that come back bit for bit, with NaNs in them."""

    @pytest.fixture
    def weights(self) -> dict[str, Tensor]:
        """Rows that end within a block, and at its border."""
        return {
            str(columns): with_specials(weight(12, columns, dtype=torch.bfloat16))
            for columns in (1100, 1536)
        }

    @pytest.mark.parametrize("columns", ["1100", "1536"])
    @pytest.mark.parametrize("name", EXACT_VIEWS)
    def test_they_stay_exact(self, weights: Any, name: str, columns: str) -> None:
        original = weights[columns]
        tensor = PhiTensor.from_hp(original, PhiConfig(exact=True))
        view = silently(lambda: EXACT_VIEWS[name](tensor))
        expected = EXACT_VIEWS[name](original)
        assert isinstance(view, PhiTensor)
        assert view.shape == expected.shape
        assert same_bits(view.dequantize(), expected)
        assert view.is_exact
        lossy = EXACT_VIEWS[name](tensor.at(4))
        assert same_bits(view.at(4).dequantize(), lossy.dequantize())

    @pytest.mark.parametrize("name", ["rows", "a row", "rows of rows", "an expert", "chunk"])
    def test_what_rows_take_is_counted_truly(self, name: str) -> None:
        tensor = compressed(12, 1536, dtype=torch.bfloat16, exact=True)
        rows = EXACT_VIEWS[name](tensor)
        alone = PhiTensor.from_hp(rows.dequantize().view(-1, 1536), PhiConfig(exact=True))
        few = 8 * 32  # starts of its own, and a checksum that the slice does not have
        assert abs(rows.stored_bytes - alone.stored_bytes) <= few
        assert rows.remainder_plane.data_ptr() >= tensor.remainder_plane.data_ptr()
        assert rows.checksum_plane is None

    def test_what_other_cuts_do_not_reach_is_left_out(self) -> None:
        tensor = compressed(12, 1536, dtype=torch.bfloat16, exact=True)
        whole = tensor.remainder_plane.numel()
        assert tensor[2:10:3].remainder_plane.numel() < 0.65 * whole
        assert tensor[4:6, 512:1024].remainder_plane.numel() < 0.2 * whole
        assert tensor[4][512:1024].remainder_plane.numel() < 0.04 * whole

    def test_slices_are_equal_to_what_they_hold(self, weights: Any) -> None:
        tensor = PhiTensor.from_hp(weights["1536"], PhiConfig(exact=True))
        assert torch.equal(tensor[2:9][1:4], tensor[3:6])
        assert torch.equal(tensor[::2][1:2], tensor[2:3])
        assert not torch.equal(tensor[2:4], tensor[3:5])
        assert not torch.equal(tensor, tensor.at(4))
        assert not torch.equal(tensor.at(4), tensor)

    @pytest.mark.parametrize("columns", ["1100", "1536"])
    def test_rows_by_number(self, weights: Any, columns: str) -> None:
        original = weights[columns]
        tensor = PhiTensor.from_hp(original, PhiConfig(exact=True))
        rows = torch.tensor([[0, 11], [-3, 0]])
        assert same_bits(silently(lambda: tensor[rows]), original[rows])
        assert same_bits(silently(lambda: tensor.index_select(0, rows[0])), original[rows[0]])
        looked_up = functional.embedding(rows.abs(), tensor)
        assert same_bits(looked_up, functional.embedding(rows.abs(), original))

    def test_products_are_those_of_the_original(self) -> None:
        original = weight(12, 600)
        tensor = PhiTensor.from_hp(original, PhiConfig(exact=True))
        for of, dense in ((tensor, original), (tensor[3:7], original[3:7])):
            x, y = (torch.ones(2, 600, requires_grad=True) for _ in range(2))
            ours, theirs = functional.linear(x, of), functional.linear(y, dense)
            torch.testing.assert_close(ours, theirs)
            ours.square().sum().backward()
            theirs.square().sum().backward()
            torch.testing.assert_close(x.grad, y.grad)

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_any_chain_of_views(self, data: st.DataObject) -> None:
        theirs = EXACT_CHAIN.dequantize()
        ours: Tensor = EXACT_CHAIN
        for _ in range(data.draw(st.integers(1, 4))):
            dim = data.draw(st.integers(0, theirs.dim() - 1))
            extent = theirs.shape[dim]
            if data.draw(st.booleans()) and extent and theirs.dim() > 1:
                place = data.draw(st.integers(-extent, extent - 1))
                ours, theirs = ours.select(dim, place), theirs.select(dim, place)
                continue
            borders = st.sampled_from([0, 1, 2, 3, 511, 512, 600, 1024, extent])
            start, stop = sorted(min(data.draw(borders), extent) for _ in range(2))
            cut = [slice(None)] * theirs.dim()
            cut[dim] = slice(start, stop, data.draw(st.integers(1, 2)))
            ours, theirs = ours[tuple(cut)], theirs[tuple(cut)]
        assert ours.shape == theirs.shape
        assert same_bits(ours.dequantize() if isinstance(ours, PhiTensor) else ours, theirs)


EXACT_CHAIN = PhiTensor.from_hp(
    with_specials(weight(3, 4, 1100, dtype=torch.bfloat16)), PhiConfig(exact=True)
)
