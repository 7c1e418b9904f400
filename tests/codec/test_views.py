"""Parts of planes decode to the parts of the weight, at every tier, and hold no more than that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phiquant import codec
from phiquant.codec import DTYPES, Layout, Planes, cut_rows, pick_rows
from phiquant.codec.layout import PADDING
from phiquant.codec.remainder import begins_of
from phiquant.codec.views import cut_columns
from tests.codec.support import bits, exact, floats, heavy_tailed

Cut = Callable[[Tensor], Tensor]


def with_specials(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Exceptions in the first and last column, in rows apart and next to each other."""
    weight = heavy_tailed(*shape).to(dtype)
    rows = weight.view(-1, shape[-1])
    rows[0, 0], rows[-1, -1], rows[1, 0], rows[0, -1] = math.inf, math.nan, -math.inf, math.nan
    rows[len(rows) // 2] = math.inf
    return weight


@cache
def stored(*shape: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Planes, Layout]:
    """A weight and its planes, which no test changes."""
    weight = with_specials(*shape, dtype=dtype)
    return weight, *exact(weight)


def check(weight: Tensor, cut: Cut, planes: Planes, layout: Layout) -> Planes:
    """The view of all planes, and of the lossy ones, is the cut of what they decode to."""
    compare(cut(weight), cut_rows(planes, layout.columns, cut), layout)
    lossy, bare = layout.without_remainder, without_remainder(planes)
    compare(cut(codec.decode(bare, lossy)), cut_rows(bare, layout.columns, cut), lossy)
    return cut_rows(planes, layout.columns, cut)


def compare(expected: Tensor, view: Planes, layout: Layout) -> None:
    layout.check(view)
    got = codec.decode(view, layout, expected.dtype)
    assert got.shape == expected.shape
    assert torch.equal(bits(got), bits(expected.contiguous()))


def without_remainder(planes: Planes) -> Planes:
    return planes._replace(remainder=None, offsets=None, starts=None)


MATRIX_CUTS = {
    "all": lambda t: t,
    "first": lambda t: t[:1],
    "last": lambda t: t[-1:],
    "middle": lambda t: t[2:5],
    "every other": lambda t: t[::2],
    "every third from the second": lambda t: t[1::3],
    "none": lambda t: t[3:3],
    "one row without its dimension": lambda t: t[4],
    "more dimensions": lambda t: t[:6].unflatten(0, (2, 3)),
}


@pytest.mark.parametrize("cut", MATRIX_CUTS.values(), ids=MATRIX_CUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_a_matrix(dtype: torch.dtype, cut: Cut) -> None:
    weight, planes, layout = stored(7, 600, dtype=dtype)
    check(weight, cut, planes, layout)


STACK_CUTS = {
    "all": lambda t: t,
    "one expert": lambda t: t[1],
    "experts": lambda t: t[1:],
    "rows of every expert": lambda t: t[:, 1:4:2],
    "one row of every expert": lambda t: t[:, 2],
    "one row": lambda t: t[2, 4],
    "flat": lambda t: t.flatten(0, 1),
    "exchanged": lambda t: t.transpose(0, 1),
    "twice": lambda t: t[1:][:, ::2],
}


@pytest.mark.parametrize("cut", STACK_CUTS.values(), ids=STACK_CUTS)
def test_rows_of_stacked_matrices(cut: Cut) -> None:
    weight, planes, layout = stored(3, 5, 70)
    check(weight, cut, planes, layout)


def test_a_view_of_a_view() -> None:
    weight, planes, layout = stored(8, 1100)
    view = check(weight, lambda t: t[1:7], planes, layout)
    view = check(weight[1:7], lambda t: t[::2], view, layout)
    check(weight[1:7:2], lambda t: t[1:], view, layout)


def test_a_view_of_many_blocks() -> None:
    """More than one start is behind it, and it begins between two."""
    weight = with_specials(70, 700)
    planes, layout = exact(weight, grid="golden")
    assert planes.starts.numel() == 5
    check(weight, lambda t: t[20:60:7], planes, layout)


class TestSizes:
    """A view of the remainder holds the bytes from its first block to its last."""

    planes, layout = exact(heavy_tailed(40, 1100), grid="golden")

    @pytest.mark.parametrize(
        ("cut", "blocks"),
        [
            (slice(0, 1), slice(0, 3)),
            (slice(7, 9), slice(21, 27)),
            (slice(3, 10, 3), slice(9, 30)),
            (slice(39, 40), slice(117, 120)),
            (slice(0, 40), slice(0, 120)),
        ],
        ids=str,
    )
    def test_of_rows(self, cut: slice, blocks: slice) -> None:
        begins = begins_of(self.planes).flatten()
        ends = torch.cat([begins[1:], torch.tensor([self.planes.remainder.numel() - PADDING])])
        first, last = begins[blocks][0], ends[blocks][-1]
        view = cut_rows(self.planes, 1100, lambda t: t[cut])
        assert torch.equal(view.remainder, self.planes.remainder[first : last + PADDING])
        assert view.remainder.data_ptr() == self.planes.remainder[first:].data_ptr()

    def test_of_no_rows(self) -> None:
        view = cut_rows(self.planes, 1100, lambda t: t[5:5])
        assert view.remainder.numel() == PADDING
        assert view.starts.numel() == view.offsets.numel() == 0

    def test_rows_that_follow_each_other_keep_two_level_offsets(self) -> None:
        view = cut_rows(self.planes, 1100, lambda t: t[5:38])
        assert view.starts.shape == (4,)
        assert view.starts[0] == 0

    def test_rows_apart_have_a_start_for_each_block(self) -> None:
        view = cut_rows(self.planes, 1100, lambda t: t[5:38:2])
        assert view.starts.shape == (17 * 3,)
        assert not view.offsets.any()

    def test_lossy_planes_are_no_copies(self) -> None:
        view = cut_rows(self.planes, 1100, lambda t: t[2:4])
        assert view.index.data_ptr() == self.planes.index[2:].data_ptr()


class TestPickRows:
    @pytest.mark.parametrize("rows", [[8, 0, 4, 3], [2, 3, 4], [5], [], list(range(9))[::-1]])
    def test_in_any_order(self, rows: list[int]) -> None:
        weight, planes, layout = stored(9, 600)
        picked = torch.tensor(rows, dtype=torch.int64)
        compare(weight[picked], pick_rows(planes, picked, 600), layout)
        bare, lossy = without_remainder(planes), layout.without_remainder
        expected = codec.decode(bare, lossy)[picked]
        compare(expected, pick_rows(bare, picked, 600), lossy)

    def test_with_blocks_that_hold_nothing(self) -> None:
        """Floats that are alone in their sub-cells take no bits: blocks begin at equal bytes."""
        weight = heavy_tailed(4, 64).bfloat16()
        weight[1] = floats(torch.arange(0x3F80, 0x3F90).repeat(4), torch.bfloat16)
        planes, layout = exact(weight, index_bits=6, deviation_bits=8)
        begins = begins_of(planes).flatten().tolist()
        assert begins[1] == begins[2] < begins[3]
        for rows in ([0, 2, 1, 3], [3, 1, 2, 0], [2, 1], [1, 2]):
            picked = torch.tensor(rows)
            compare(weight[picked], pick_rows(planes, picked, 64), layout)


class TestCutColumns:
    @pytest.mark.parametrize(
        ("start", "stop"), [(0, 1300), (0, 512), (512, 1024), (512, 1300), (1024, 1300)]
    )
    @pytest.mark.parametrize("shape", [(5, 1300), (2, 3, 1300)], ids=str)
    def test_between_blocks(self, shape: tuple[int, ...], start: int, stop: int) -> None:
        weight, planes, layout = stored(*shape)
        view = cut_columns(planes, 1300, 64, start, stop)
        compare(weight[..., start:stop], view, replace(layout, columns=stop - start))

    @pytest.mark.parametrize(("start", "stop"), [(0, 64), (64, 192), (128, 200), (0, 200)])
    def test_between_groups_without_a_remainder(self, start: int, stop: int) -> None:
        _, planes, layout = stored(5, 200)
        bare, lossy = without_remainder(planes), layout.without_remainder
        view = cut_columns(bare, 200, 64, start, stop)
        whole = codec.decode(bare, lossy)
        compare(whole[:, start:stop], view, replace(lossy, columns=stop - start))

    def test_then_rows(self) -> None:
        weight, planes, layout = stored(9, 1300)
        view = cut_rows(planes, 1300, lambda t: t[2:8:2])
        view = cut_columns(view, 1300, 64, 512, 1024)
        compare(weight[2:8:2, 512:1024], view, replace(layout, columns=512))


class TestExceptions:
    """Places in the flat view, ascending; those of rows that are left out go."""

    def moved(self, cut: Cut | list[int]) -> list[list[int]] | None:
        planes = codec.encode(heavy_tailed(4, 10), Layout(10))
        places = torch.tensor([[0, 1], [9, 2], [12, 3], [13, 4], [35, 5], [40, 6], [1 << 62, 7]])
        planes = planes._replace(exceptions=places)
        if isinstance(cut, list):
            found = pick_rows(planes, torch.tensor(cut), 10).exceptions
        else:
            found = cut_rows(planes, 10, cut).exceptions
        return None if found is None else found.tolist()

    def test_of_rows_that_stay(self) -> None:
        assert self.moved(lambda t: t)[:5] == [[0, 1], [9, 2], [12, 3], [13, 4], [35, 5]]
        assert self.moved(lambda t: t[1:])[:3] == [[2, 3], [3, 4], [25, 5]]
        assert self.moved(lambda t: t[1::2]) == [[2, 3], [3, 4], [15, 5]]

    def test_of_rows_in_another_order(self) -> None:
        assert self.moved([3, 2, 1, 0]) == [[5, 5], [22, 3], [23, 4], [30, 1], [39, 2]]

    def test_of_rows_that_go(self) -> None:
        assert self.moved(lambda t: t[2:3]) is None
        assert self.moved([2]) is None

    def test_without_any(self) -> None:
        lossy = codec.encode(heavy_tailed(4, 10), Layout(10))
        assert cut_rows(lossy, 10, lambda t: t[1:]).exceptions is None


@given(
    st.integers(1, 9),
    st.slices(9),
    st.slices(9),
    st.sampled_from([1, 64, 513]),
)
@settings(max_examples=40)
def test_any_slices(rows: int, first: slice, second: slice, columns: int) -> None:
    first, second = (
        slice(*(None if n is None else abs(n) for n in (s.start, s.stop, s.step)))
        for s in (first, second)
    )
    weight = heavy_tailed(rows, columns).half()
    weight[rows // 2, columns // 2] = math.inf
    check(weight, lambda t: t[first][second], *exact(weight, grid="golden"))
