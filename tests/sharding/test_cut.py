"""Parts of weights by intervals, and the intervals of ranks by placements."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from phiquant import PhiConfig, PhiTensor
from phiquant.sharding import all_intervals, cut, intervals_of, why_not_columns
from phiquant.sharding.intervals import Intervals
from tests.support import compressed, same_bits, weight, with_specials


def expected(whole: Tensor, intervals: Intervals) -> Tensor:
    plain = whole.dequantize() if isinstance(whole, PhiTensor) else whole
    for dim, parts in enumerate(intervals):
        plain = torch.cat([plain.narrow(dim, a, b - a) for a, b in parts], dim)
    return plain


class TestCut:
    @pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
    @pytest.mark.parametrize(
        "intervals",
        [
            pytest.param([[(0, 6)], [(0, 1100)]], id="whole"),
            pytest.param([[(1, 4)], [(0, 1100)]], id="rows"),
            pytest.param([[(0, 2), (3, 5)], [(0, 1100)]], id="rows of a fused weight"),
            pytest.param([[(0, 6)], [(512, 1100)]], id="columns to the end"),
            pytest.param([[(0, 6)], [(0, 512), (1024, 1100)]], id="columns of a fused weight"),
            pytest.param([[(2, 3)], [(512, 1024)]], id="both"),
        ],
    )
    def test_whole_groups_stay_compressed(self, exact: bool, intervals: Intervals) -> None:
        plain = with_specials(weight(6, 1100)) if exact else weight(6, 1100)
        whole = PhiTensor.from_hp(plain, PhiConfig(exact=exact))
        part = cut(whole, intervals)
        assert isinstance(part, PhiTensor)
        assert same_bits(part.dequantize(), expected(whole, intervals))

    @pytest.mark.parametrize(
        "how",
        [
            pytest.param({"transposed": True}, id="transposed"),
            pytest.param({}, id="experts"),
        ],
    )
    def test_experts(self, how: dict[str, Any]) -> None:
        whole = PhiTensor.from_hp(weight(4, 128, 128), **how)
        for intervals in (
            [[(2, 4)], [(0, 128)], [(0, 128)]],
            [[(0, 4)], [(64, 128)], [(0, 128)]],
            [[(0, 4)], [(0, 128)], [(0, 64)]],
        ):
            part = cut(whole, intervals)
            assert isinstance(part, PhiTensor)
            assert same_bits(part.dequantize(), expected(whole, intervals))

    def test_input_channels_of_a_convolution(self) -> None:
        whole = PhiTensor.from_hp(weight(4, 128, 3, 3), column_dims=3)
        intervals = [[(1, 3)], [(64, 128)], [(0, 3)], [(0, 3)]]
        part = cut(whole, intervals)
        assert isinstance(part, PhiTensor)
        assert part.shape == (2, 64, 3, 3)
        assert same_bits(part.dequantize(), expected(whole, intervals))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_borders_in_a_group_of_an_exact_weight(self, dtype: torch.dtype) -> None:
        plain = with_specials(weight(6, 1100, dtype=dtype))
        part = cut(PhiTensor.from_hp(plain, PhiConfig(exact=True)), [[(0, 3)], [(0, 70)]])
        assert isinstance(part, PhiTensor)
        assert same_bits(part.dequantize(), plain[:3, :70].contiguous())

    def test_borders_in_a_group_of_a_lossy_weight(self) -> None:
        whole = compressed(6, 192)
        whole.fqn = "block.weight"
        with pytest.warns(
            UserWarning, match=r"block\.weight: columns 0:70 are not whole groups of 64"
        ):
            part = cut(whole, [[(0, 3)], [(0, 70)]])
        assert type(part) is Tensor
        assert same_bits(part, whole.dequantize()[:3, :70].contiguous())

    def test_one_kind_of_tensor_for_all_ranks(self) -> None:
        whole = compressed(6, 192)
        part = cut(whole, [[(0, 6)], [(0, 64)]], [[[(0, 6)], [(64, 100)]]])
        assert type(part) is Tensor

    def test_nothing(self) -> None:
        whole = compressed(6, 192)
        assert cut(whole, [[], [(0, 192)]]).shape == (0, 192)
        assert cut(whole, [[(0, 6)], []]).shape == (6, 0)

    def test_other_dimensions(self) -> None:
        with pytest.raises(ValueError, match="expected intervals of 2 dimensions, got 1"):
            cut(compressed(6, 192), [[(0, 6)]])


class TestIntervals:
    @pytest.mark.parametrize(
        ("placements", "wanted"),
        [
            pytest.param([Shard(0)], [[(5, 9)], [(0, 8)]], id="rows"),
            pytest.param([Shard(-1)], [[(0, 9)], [(4, 8)]], id="columns"),
            pytest.param([Replicate()], [[(0, 9)], [(0, 8)]], id="copies"),
            pytest.param(
                [_StridedShard(1, split_factor=2)], [[(0, 9)], [(2, 4), (6, 8)]], id="fused"
            ),
        ],
    )
    def test_of_the_second_of_two(self, placements: list[Any], wanted: Intervals) -> None:
        mesh: Any = SimpleNamespace(shape=(2,), get_coordinate=lambda: [1])
        assert intervals_of((9, 8), mesh, placements) == wanted

    def test_of_two_dimensions_of_ranks(self) -> None:
        mesh: Any = SimpleNamespace(shape=(2, 2))
        rows = [part[0] for part in all_intervals((8, 4), mesh, [Shard(0), Shard(0)])]
        assert rows == [[(0, 2)], [(2, 4)], [(4, 6)], [(6, 8)]]

    def test_more_ranks_than_rows(self) -> None:
        mesh: Any = SimpleNamespace(shape=(3,))
        rows = [part[0] for part in all_intervals((2, 4), mesh, [Shard(0)])]
        assert rows == [[(0, 1)], [(1, 2)], []]

    def test_a_partial_sum(self) -> None:
        mesh: Any = SimpleNamespace(shape=(2,), get_coordinate=lambda: [0])
        with pytest.raises(ValueError, match="cannot be a partial sum"):
            intervals_of((2, 4), mesh, [Partial()])

    def test_a_process_that_is_no_rank(self) -> None:
        mesh: Any = SimpleNamespace(shape=(2,), get_coordinate=lambda: None)
        with pytest.raises(ValueError, match="this rank is not one of"):
            intervals_of((2, 4), mesh, [Shard(0)])


def test_why_not_columns() -> None:
    assert why_not_columns([(0, 64), (128, 150)], 150, 64) == ""
    assert why_not_columns([(0, 150)], 150, 64) == ""
    assert "columns 0:70" in why_not_columns([(0, 70)], 150, 64)
    assert "columns 64:150" in why_not_columns([(64, 150), (0, 64)], 150, 64)
