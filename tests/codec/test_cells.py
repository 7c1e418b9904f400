"""Cells: every weight lies in its sub-cell, and its level stays inside."""

from __future__ import annotations

import itertools

import pytest
import torch

from phiquant import codec
from phiquant.codec import DTYPES, GROUP_SIZES, Layout, cells
from phiquant.grid import DEVIATION_BITS, GRIDS, INDEX_BITS
from tests.codec.support import (
    encoded,
    heavy_tailed,
    index_tier,
    normal,
    sub_cells,
    with_deviation_bits,
)

LAYOUTS = [
    pytest.param(
        {"grid": grid, "index_bits": index, "deviation_bits": deviation, "group_size": size},
        id=f"{grid}-{index}+{deviation}-g{size}",
    )
    for number, (grid, index, deviation) in enumerate(
        itertools.product(GRIDS, INDEX_BITS, DEVIATION_BITS)
    )
    for size in [GROUP_SIZES[number % 3]]
]


@pytest.mark.parametrize("arguments", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_lie_in_their_sub_cells(arguments: dict, dtype: torch.dtype) -> None:
    weight = torch.cat([normal(4, 200), heavy_tailed(4, 200)]).to(dtype)
    planes, layout = encoded(weight, **arguments)
    low, high = sub_cells(planes, layout)
    weight = weight.float()
    assert ((low <= weight) & (weight <= high)).all()
    # The lower edge, seen from the scale's side, belongs to the sub-cell and the upper one not.
    positive = planes.scale.repeat_interleave(layout.group_size, -1)[:, :200] >= 0
    # A zero belongs to the sub-cell of its sign, whose edge it is.
    inside = torch.where(positive, weight < high, weight > low)
    assert (inside | (weight == 0)).all()


@pytest.mark.parametrize("arguments", LAYOUTS)
def test_decoding_stays_in_the_sub_cell_and_the_index_tier_in_the_cell(arguments: dict) -> None:
    weight = torch.cat([normal(4, 200), heavy_tailed(4, 200)])
    planes, layout = encoded(weight, **arguments)
    low, high = sub_cells(planes, layout)
    decoded = codec.decode(planes, layout)
    assert ((low < decoded) & (decoded < high)).all()
    assert ((decoded - weight).abs() < high - low).all()
    low, high = sub_cells(
        planes._replace(deviation=None, deviation_low=None), with_deviation_bits(layout, 0)
    )
    coarse = index_tier(planes, layout)
    assert ((low < coarse) & (coarse < high)).all()
    assert ((low <= weight) & (weight <= high)).all()


@pytest.mark.parametrize("arguments", LAYOUTS)
def test_the_index_is_that_of_the_coarser_layout(arguments: dict) -> None:
    """Cells nest: given a scale word, more deviation bits never change the index."""
    weight = normal(3, arguments["group_size"])
    layout = Layout(weight.shape[-1], **arguments)
    scale = torch.tensor([[0.5], [-0.4], [2.0]])
    bend = torch.tensor([[0], [layout.curve.bends - 1], [layout.curve.bends // 2]])
    codes = cells.find(weight, scale, bend, layout)
    coarse = Layout(weight.shape[-1], **{**arguments, "deviation_bits": 0})
    assert torch.equal(codes >> layout.deviation_bits, cells.find(weight, scale, bend, coarse))


@pytest.mark.parametrize("arguments", LAYOUTS)
def test_edges_belong_to_the_sub_cell_above_them(arguments: dict) -> None:
    layout = Layout(64, **arguments)
    count = 1 << layout.index_bits + layout.deviation_bits
    codes = torch.arange(count).unsqueeze(0)
    for bend, scale in itertools.product(range(layout.curve.bends), (1.0, -0.8515625)):
        where = torch.tensor([[scale]]), torch.tensor([[bend]])
        edge = cells.edges(codes, where[1], layout, layout.deviation_bits) * where[0]
        assert torch.equal(cells.find(edge, *where, layout), codes)
        outward = torch.tensor(-torch.inf if scale > 0 else torch.inf)
        below = torch.nextafter(edge, outward)
        assert torch.equal(cells.find(below, *where, layout), (codes - 1).clamp(min=0))


def test_a_weight_beyond_the_grid_gets_the_nearest_code() -> None:
    layout = Layout(64)
    where = torch.tensor([[1.0]]), torch.tensor([[0]])
    codes = cells.find(torch.tensor([[-5.0, 5.0, -1e38, 1e38]]), *where, layout)
    assert codes.tolist() == [[0, 255, 0, 255]]


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_negative_zero_lies_below_zero(scale: float) -> None:
    where = torch.tensor([[scale]]), torch.tensor([[3]])
    codes = cells.find(torch.tensor([[0.0, -0.0]]), *where, Layout(64))
    above, below = 7 << 4 | 8, 7 << 4 | 7
    assert codes.tolist() == [[above, below] if scale > 0 else [below, above]]
