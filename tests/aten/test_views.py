"""Views of a PhiTensor: which stay compressed, and what the others decode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phiquant import PhiTensor
from tests.aten.support import silently
from tests.support import compressed, same_bits

VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "t": lambda w: w.t(),
    "t.t": lambda w: w.t().t(),
    "rows": lambda w: w[3:11],
    "every other row": lambda w: w[1::2],
    "no rows": lambda w: w[4:4],
    "groups": lambda w: w[:, 64:],
    "one group": lambda w: w[:, 64:128],
    "rows of groups": lambda w: w[2:5, :128],
    "groups of the transpose": lambda w: w.t()[64:, 2:4],
    "narrow": lambda w: w.narrow(1, 128, 64),
    "view": lambda w: w.view(4, 4, 192),
    "view -1": lambda w: w.view(2, -1, 192),
    "view last -1": lambda w: w.view(16, -1),
    "a cut, then a view": lambda w: w[:, 64:].view(4, 4, 128),
    "reshape": lambda w: w.reshape(8, 2, 192),
    "an expert": lambda w: w.view(4, 4, 192)[2],
    "a row": lambda w: w[5],
    "the last row": lambda w: w[-1],
    "a row of an expert": lambda w: w.view(4, 4, 192)[2, 3],
    "experts' rows": lambda w: w.view(4, 4, 192)[:, 1],
    "transposed experts": lambda w: w.view(4, 4, 192).transpose(1, 2)[3, 64:],
    "chunk": lambda w: w.chunk(4)[1],
    "chunk of groups": lambda w: w.chunk(3, dim=1)[2],
    "split": lambda w: w.split([4, 12])[1],
    "uneven split": lambda w: w.split(7)[2],
    "split of the transpose": lambda w: w.t().split(64)[1],
    "detach": lambda w: w.detach(),
    "contiguous": lambda w: w.contiguous(),
}


class TestViews:
    @pytest.mark.parametrize("name", VIEWS)
    def test_they_stay_compressed(self, matrix: PhiTensor, name: str) -> None:
        view, dense = silently(lambda: VIEWS[name](matrix)), VIEWS[name](matrix.dequantize())
        assert isinstance(view, PhiTensor)
        assert (view.shape, view.dtype, view.fqn) == (dense.shape, dense.dtype, "block.weight")
        assert torch.equal(view.dequantize(), dense)
        assert f"shape={tuple(dense.shape)}" in repr(view)

    @pytest.mark.parametrize("name", ["t", "rows", "groups", "view", "an expert", "a row", "split"])
    def test_they_share_memory(self, matrix: PhiTensor, name: str) -> None:
        storage = VIEWS[name](matrix).index_plane.untyped_storage().data_ptr()
        assert storage == matrix.index_plane.untyped_storage().data_ptr()

    @pytest.mark.parametrize(
        "view",
        [
            lambda w: w.flatten(),
            lambda w: w.view(-1) + 0,
            lambda w: w.view(32, 96),
            lambda w: w.unsqueeze(0),
            lambda w: w.t().reshape(16, 192),
            lambda w: w.view(4, 4, 192).permute(2, 0, 1),
            lambda w: w.expand(2, 16, 192),
            lambda w: w.unbind()[3],
            lambda w: w[torch.arange(192 * 16).view(16, 192) < 3],
            lambda w: w.split(50, dim=1)[1],
        ],
    )
    def test_others_decode(self, matrix: PhiTensor, view: Callable[[Tensor], Tensor]) -> None:
        with pytest.warns(
            UserWarning, match=r"has no compressed form, so block\.weight is decoded"
        ):
            result = view(matrix)
        assert type(result) is Tensor
        assert torch.equal(result, view(matrix.dequantize()))

    @pytest.mark.filterwarnings("ignore:.*has no compressed form")
    @pytest.mark.parametrize(
        "view",
        [
            lambda w: w.view(16, 191),
            lambda w: w.view(-1, 7),
            lambda w: w[16],
            lambda w: w.t()[:, 16].select(0, 192),
            lambda w: w.split([4, 4]),
            lambda w: w.split(0),
            lambda w: w.transpose(0, 2),
            lambda w: w.permute(0, 2),
            lambda w: w.permute(0, 0),
            lambda w: w.narrow(2, 0, 1),
        ],
    )
    def test_impossible_views_raise_what_torch_raises(
        self, matrix: PhiTensor, view: Callable[[Tensor], Tensor]
    ) -> None:
        with pytest.raises((RuntimeError, IndexError)) as theirs:
            view(matrix.dequantize())
        with pytest.raises(theirs.type):
            view(matrix)

    def test_a_row_of_every_transposed_matrix(self) -> None:
        weight = compressed(6, 4, 160, group_size=32)
        picked = weight.mT.select(-1, 2)
        assert isinstance(picked, PhiTensor)
        assert torch.equal(picked.dequantize(), weight.dequantize().mT.select(-1, 2))

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_chain_of_views(self, data: st.DataObject) -> None:
        ours, theirs = compressed(6, 4, 160, group_size=32), None
        theirs = ours.dequantize()
        for _ in range(data.draw(st.integers(1, 5))):
            step = data.draw(st.sampled_from(["slice", "swap", "select", "split"]))
            dim = data.draw(st.integers(-theirs.dim(), theirs.dim() - 1))
            extent = theirs.shape[dim]
            if step == "slice":
                start, stop = (data.draw(st.integers(0, extent)) for _ in range(2))
                cut = [slice(None)] * theirs.dim()
                cut[dim] = slice(start, max(start, stop), data.draw(st.integers(1, 2)))
                move = lambda t, cut=tuple(cut): t[cut]  # noqa: E731
            elif step == "swap":
                other = data.draw(st.integers(-theirs.dim(), theirs.dim() - 1))
                move = lambda t, a=dim, b=other: t.transpose(a, b)  # noqa: E731
            elif step == "select" and extent and theirs.dim() > 1:
                place = data.draw(st.integers(-extent, extent - 1))
                move = lambda t, d=dim, i=place: t.select(d, i)  # noqa: E731
            else:
                size = data.draw(st.integers(1, 64))
                move = lambda t, d=dim, s=size: t.split(s, d)[-1]  # noqa: E731
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ours, theirs = move(ours), move(theirs)
            assert ours.shape == theirs.shape
            decoded = ours.dequantize() if isinstance(ours, PhiTensor) else ours
            assert torch.equal(decoded, theirs)


PIERCED: dict[str, Callable[[Tensor], Any]] = {
    "from within a group": lambda w: w[:, 10:],
    "to within a group": lambda w: w[:, :70],
    "inside of a group": lambda w: w[:, 3:5],
    "every other": lambda w: w[:, ::2],
    "a column": lambda w: w[:, 3],
    "the last column": lambda w: w[:, -1],
    "none": lambda w: w[:, 9:9],
    "a tile": lambda w: w[2:5, 50:130],
    "a weight": lambda w: w[3, 77],
    "part of a row": lambda w: w[3][60:70],
    "rows of the transpose": lambda w: w.t()[7:9],
    "a row of the transpose": lambda w: w.t()[65],
    "columns of experts": lambda w: w.view(4, 4, -1)[1:3, :, 5:7],
    "narrow": lambda w: w.narrow(-1, 1, 3),
}


class TestPiercing:
    """What cuts through groups or blocks decodes those that it touches, and no more."""

    @pytest.mark.parametrize("name", PIERCED)
    @pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
    def test_values(self, exact: bool, name: str) -> None:
        tensor = compressed(16, 640, exact=exact)
        result = silently(lambda: PIERCED[name](tensor))
        assert type(result) is Tensor
        assert same_bits(result, PIERCED[name](tensor.dequantize()))

    @pytest.mark.parametrize(
        ("exact", "cut", "most"),
        [
            (False, lambda w: w[:, 10:20], 16 * 64),
            (False, lambda w: w[4:6, 60:70], 2 * 128),
            (False, lambda w: w[3, 77], 64),
            (True, lambda w: w[:, 10:20], 16 * 512),
            (True, lambda w: w[4:6, 600:601], 2 * 128),
            (True, lambda w: w[3, 77], 512),
            (True, lambda w: w.t()[5, 2:4], 16 * 512),
        ],
    )
    def test_no_more_is_decoded_than_holds_it(
        self, exact: bool, cut: Any, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tensor, decode, sizes = compressed(16, 640, exact=exact), torch.ops.phiquant.decode, []

        def counting(*arguments: Any) -> Tensor:
            weight = decode(*arguments)
            sizes.append(weight.numel())
            return weight

        monkeypatch.setattr(torch.ops.phiquant, "decode", counting)
        cut(tensor)
        assert sizes == [most]

    def test_a_column_out_of_range_is_named(self, matrix: PhiTensor) -> None:
        for place in (192, -193):
            with pytest.raises(
                IndexError, match=rf"^block\.weight: column {place} is out of range"
            ):
                matrix.select(1, place)


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
@pytest.mark.parametrize(
    "view",
    [
        lambda w: w[3:5],
        lambda w: w[3],
        lambda w: w[:, 3:70],
        lambda w: w[5:9, 7],
        lambda w: w.t(),
        lambda w: w.view(4, 16, 128),
        lambda w: w.detach(),
    ],
    ids=["rows", "row", "columns", "column", "transpose", "view", "detach"],
)
def test_views_work_in_inference_mode(view: Callable[[Tensor], Tensor], exact: bool) -> None:
    of = compressed(64, 128, dtype=torch.bfloat16, exact=exact)
    expected = view(of.dequantize())
    with torch.inference_mode():
        assert torch.equal(view(of).clone(), expected)
