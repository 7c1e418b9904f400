"""Operations without an entry: each decodes and says so once, or is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from phiquant import PhiTensor
from tests.aten.support import silently
from tests.support import compressed


class TestFallback:
    def test_one_warning_for_each_operation_and_parameter(self, matrix: PhiTensor) -> None:
        other = compressed(16, 192)
        other.fqn = "other.weight"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                matrix.sum()
                torch.stack([matrix, other])
        assert sorted(str(w.message).split(" is decoded")[0] for w in caught) == [
            "phiquant: aten.stack.default has no compressed form, so block.weight",
            "phiquant: aten.stack.default has no compressed form, so other.weight",
            "phiquant: aten.sum.default has no compressed form, so block.weight",
        ]
        assert all("filter_fn" in str(w.message) for w in caught)
        assert {w.category for w in caught} == {UserWarning}

    def test_a_row_is_no_matter_of_warning(self, matrix: PhiTensor) -> None:
        row = silently(lambda: matrix[3] * 2)
        assert torch.equal(row, matrix.dequantize()[3] * 2)

    @pytest.mark.parametrize(
        "call",
        [
            lambda w: w * 2,
            lambda w: 1 / (w + 10),
            lambda w: w.abs().amax(-1),
            lambda w: w.norm(),
            lambda w: torch.stack([w, w]),
            lambda w: w == w,
            lambda w: torch.linalg.svdvals(w),
            lambda w: functional.softmax(w, dim=-1),
            lambda w: functional.linear(torch.ones(2, 16), w.t()),
            lambda w: functional.linear(w, torch.ones(4, 192)),
            lambda w: functional.embedding_bag(torch.tensor([[1, 2]]), w),
            lambda w: torch.where(w > 0, w, 0),
            lambda w: nn.utils.parameters_to_vector([w]),
        ],
    )
    def test_the_answer_is_that_of_the_decoded_weight(
        self, matrix: PhiTensor, call: Callable[[Tensor], Tensor]
    ) -> None:
        with pytest.warns(UserWarning, match="has no compressed form"):
            result = call(matrix)
        torch.testing.assert_close(result, call(matrix.dequantize()))
        assert type(result) is Tensor


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "zero_": lambda w: w.zero_(),
    "iadd": lambda w: w.__iadd__(1),
    "data": lambda w: w.data.mul_(2),
    "init": lambda w: nn.init.normal_(w),
    "element": lambda w: w.__setitem__((0, 0), 1.0),
    "row": lambda w: w.__setitem__(0, torch.zeros(192)),
    "element of a row": lambda w: w[0].__setitem__(0, 1.0),
    "through a row": lambda w: w[0].zero_(),
    "through rows": lambda w: w[2:4].fill_(1),
    "through a transpose": lambda w: w.t().mul_(2),
    "copy into a row": lambda w: w.data[-1].copy_(torch.zeros(192)),
    "out": lambda w: torch.add(torch.ones(16, 192), 1, out=w),
    "foreach": lambda w: torch._foreach_mul_([w], 2.0),
    "masked": lambda w: w.masked_fill_(torch.ones(16, 192).bool(), 0),
    "index_add": lambda w: w.index_add_(0, torch.tensor([0]), torch.ones(1, 192)),
    "resize": lambda w: w.resize_(3, 3),
    "data assignment": lambda w: setattr(w, "data", torch.zeros(16, 192)),
    "data assignment of its kind": lambda w: setattr(w, "data", w.clone()),
}


@pytest.mark.parametrize("name", WRITES)
def test_no_write_is_lost(matrix: PhiTensor, name: str) -> None:
    kept = matrix.clone()
    with pytest.raises((RuntimeError, ValueError), match=r"^block\.weight: "):
        WRITES[name](matrix)
    assert torch.equal(matrix, kept)


def test_broken_planes_are_told_with_the_name_of_the_weight() -> None:
    tensor = compressed(4, 600, exact=True)
    tensor.fqn = "block.weight"
    tensor.start_plane[0] = 1 << 40
    x, rows = torch.ones(2, 600), torch.tensor([1])
    for read in (
        lambda: tensor.dequantize(),
        lambda: functional.linear(x, tensor),
        lambda: functional.embedding(rows, tensor),
        lambda: tensor[1:3].dequantize(),
        lambda: tensor[1:3, 3:5],
    ):
        with pytest.raises(ValueError, match=r"^block\.weight: remainder: block \d"):
            read()
    tensor = compressed(4, 600)
    tensor.fqn = "block.weight"
    tensor.scale_plane.zero_()
    with pytest.raises(ValueError, match=r"^block\.weight: scale: "):
        functional.linear(x, tensor)
    tensor.index_plane = tensor.index_plane[:, :-1]
    with pytest.raises(ValueError, match=r"^block\.weight: index: expected"):
        tensor.dequantize()
