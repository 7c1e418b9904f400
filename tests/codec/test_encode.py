"""Encoding: which scale word a group gets, and what does not change it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phiquant import codec
from phiquant.codec import DTYPES, GROUP_SIZES, Layout
from phiquant.codec.encode import split_codes
from phiquant.grid import DEVIATION_BITS, GRIDS, INDEX_BITS
from tests.codec.support import (
    encoded,
    group_errors,
    heavy_tailed,
    index_tier,
    join,
    layout_for,
    normal,
    same_planes,
    sub_cells,
)

FITS = ("joint", "index", "deviation")  # test_encode_exact.py has the other
LARGEST = torch.finfo(torch.float32).max


class TestShapes:
    @pytest.mark.parametrize("shape", [(70,), (3, 70), (2, 3, 70), (1, 1), (0, 70), (2, 128)])
    @pytest.mark.parametrize("deviation_bits", DEVIATION_BITS)
    def test_planes_keep_the_leading_dimensions(
        self, shape: tuple[int, ...], deviation_bits: int
    ) -> None:
        layout = Layout(shape[-1], index_bits=5, deviation_bits=deviation_bits)
        planes = codec.encode(normal(*shape), layout)
        layout.check(planes)
        assert planes.index.shape == (*shape[:-1], layout.row_bytes(5))
        assert planes.scale.shape == (*shape[:-1], layout.groups)
        assert codec.decode(planes, layout).shape == shape

    @pytest.mark.parametrize("size", GROUP_SIZES)
    def test_dimensions_are_only_a_view(self, size: int) -> None:
        weight = normal(6, 100)
        flat, layout = encoded(weight, group_size=size)
        deep = codec.encode(weight.view(2, 3, 100), layout)
        for a, b in zip(flat[:2], deep[:2], strict=True):
            assert torch.equal(a.view(2, 3, -1), b)

    def test_strided_weights(self) -> None:
        weight = normal(100, 12)
        layout = layout_for(weight.t())
        assert same_planes(
            codec.encode(weight.t(), layout), codec.encode(weight.t().contiguous(), layout)
        )

    @pytest.mark.parametrize("size", GROUP_SIZES)
    def test_the_pad_is_zero_bits(self, size: int) -> None:
        planes, layout = encoded(normal(3, size + 5), group_size=size, deviation_bits=8)
        assert (join(planes, layout)[:, size + 5 :] == 0).all()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_dtype_encodes_as_its_fp32_values(self, dtype: torch.dtype) -> None:
        weight = normal(4, 100, dtype=dtype)
        layout = layout_for(weight)
        assert same_planes(codec.encode(weight, layout), codec.encode(weight.float(), layout))


class TestChoice:
    """The chosen word against a slow search that shares only the grid with the encoder."""

    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize(
        ("grid", "index_bits", "deviation_bits"),
        [("phi", 4, 4), ("phi", 2, 2), ("phi", 3, 0), ("phi", 5, 4), ("golden", 5, 4)],
    )
    def test_no_candidate_is_better(
        self, fit: str, grid: str, index_bits: int, deviation_bits: int
    ) -> None:
        weight = torch.cat([normal(3, 32), heavy_tailed(3, 32), normal(2, 32).abs()])
        arguments = {"grid": grid, "index_bits": index_bits, "deviation_bits": deviation_bits}
        planes, layout = encoded(weight, fit, group_size=32, **arguments)
        importance = torch.ones(32, dtype=torch.float64)
        for group, word in zip(weight, planes.scale.flatten().tolist(), strict=True):
            scores = every_score(group, importance, layout, fit)
            assert word & 0xFFFF in scores
            assert scores[word & 0xFFFF] <= min(scores.values()) * (1 + 1e-6)

    @pytest.mark.parametrize("fit", FITS)
    def test_no_candidate_is_better_by_importance(self, fit: str) -> None:
        weight = heavy_tailed(6, 32)
        importance = normal(32, seed=1).square()
        layout = layout_for(weight, group_size=32)
        planes = codec.encode(weight, layout, fit, importance)
        for group, word in zip(weight, planes.scale.flatten().tolist(), strict=True):
            scores = every_score(group, importance.double(), layout, fit)
            assert scores[word & 0xFFFF] <= min(scores.values()) * (1 + 1e-6)

    @pytest.mark.parametrize("index_bits", INDEX_BITS)
    def test_each_fit_is_the_best_at_what_it_minimises(self, index_bits: int) -> None:
        weight = torch.cat([normal(32, 200), heavy_tailed(32, 200)])
        index, deviation = {}, {}
        for fit in FITS:
            planes, layout = encoded(weight, fit, index_bits=index_bits)
            index[fit] = group_errors(weight, index_tier(planes, layout), layout)
            deviation[fit] = group_errors(weight, codec.decode(planes, layout), layout)
        joint = {fit: index[fit].square() * deviation[fit] for fit in FITS}
        slack = 1 + 1e-5
        for other in FITS:
            assert (index["index"] <= index[other] * slack).all()
            assert (deviation["deviation"] <= deviation[other] * slack).all()
            assert (joint["joint"] <= joint[other] * slack).all()

    def test_without_deviation_every_fit_is_the_index_fit(self) -> None:
        weight = heavy_tailed(4, 200)
        planes = [encoded(weight, fit, deviation_bits=0)[0] for fit in FITS]
        assert all(same_planes(planes[0], other) for other in planes[1:])

    @pytest.mark.parametrize("sign", [0, 0x8000], ids=["positive", "negative"])
    @pytest.mark.parametrize(("grid", "bend"), [("golden", 0), *(("phi", b) for b in range(8))])
    def test_weights_on_a_scaled_grid_find_their_own_word_and_codes(
        self, grid: str, bend: int, sign: int
    ) -> None:
        layout = Layout(64, deviation_bits=8, grid=grid, exponent=-10)
        codes = torch.randint(15 << 8, (5, 64), generator=torch.Generator().manual_seed(bend))
        codes[:, 9] = (15 << 8) + 159  # the last sub-cell below K + 1/8: no smaller scale covers
        word = torch.tensor([0x3000, 0x3408, 0x3C50, 0x3FF8, 0x4558]) | bend | sign
        planes = split_codes(codes, layout)._replace(scale=word.short().unsqueeze(-1))
        weight = codec.decode(planes, layout)
        assert same_planes(codec.encode(weight, layout, "deviation"), planes)

    def test_a_group_with_one_long_side_turns_the_long_end_to_it(self) -> None:
        weight = normal(1, 64, seed=3).clamp(-1, 1)
        weight[0, 5] = -4.0
        assert encoded(weight)[0].scale.item() < 0
        assert encoded(-weight)[0].scale.item() > 0

    def test_unknown_fit(self) -> None:
        with pytest.raises(ValueError, match=r"fit must be one of .*got 'best'"):
            codec.encode(normal(1, 64), Layout(64), "best")


def every_score(group: Tensor, importance: Tensor, layout: Layout, fit: str) -> dict[int, float]:
    """The score of every candidate word of one group: linear search for words and for cells."""
    scores = {}
    magnitudes = torch.arange(0x0400, 0x7C00, 8)
    scales = codec.read_words(magnitudes.short(), layout)[0]
    ends = torch.tensor([layout.curve.half + 0.125, 0.5 - layout.curve.half])
    for bend, sign in itertools.product(range(layout.curve.bends), (0, 0x8000)):
        flipped = -group if sign else group
        top, bottom = layout.curve.value(ends, torch.tensor(bend)).unsqueeze(-1) * scales
        covers = (bottom <= flipped.min()) & (flipped.max() <= top)
        first = covers.nonzero()[0]
        magnitude, scale = int(magnitudes[first]), scales[first]
        errors = [
            (importance * square).sum().item() for square in squares(flipped, scale, bend, layout)
        ]
        joint = errors[0] ** 2 * errors[1]
        scores[magnitude | sign | bend] = {
            "index": errors[0],
            "deviation": errors[1],
            "joint": joint if layout.deviation_bits else errors[0],
        }[fit]
    return scores


def squares(group: Tensor, scale: Tensor, bend: int, layout: Layout) -> Iterator[Tensor]:
    """fp64 squared errors of the index tier, then of the deepest tier."""
    bits = layout.deviation_bits
    steps = torch.arange(1 << layout.index_bits + bits) / 2**bits
    start = layout.curve.half - 0.5
    edges = layout.curve.value(steps - start, torch.tensor(bend)) * scale
    code = (edges <= group.unsqueeze(-1)).sum(-1) - 1
    index = (code >> bits) - layout.curve.half + 1
    middle = (code + 0.5) / 2**bits - start
    for position in (index.float(), middle if bits else index.float()):
        level = layout.curve.value(position, torch.tensor(bend)) * scale
        yield (level - group).double().square()


class TestImportance:
    @pytest.mark.parametrize("columns", [64, 100, 192])
    @pytest.mark.parametrize("fit", FITS)
    def test_ones_are_as_none(self, columns: int, fit: str) -> None:
        weight = heavy_tailed(16, columns)
        layout = layout_for(weight)
        ones = torch.ones(columns)
        assert same_planes(
            codec.encode(weight, layout, fit), codec.encode(weight, layout, fit, ones)
        )

    @pytest.mark.parametrize("fit", FITS)
    def test_columns_of_no_importance_do_not_count(self, fit: str) -> None:
        weight = normal(50, 64)
        weight[:, 0], weight[:, 1] = 4, -4  # they fix the scales
        importance = torch.ones(64)
        importance[20:] = 0
        layout = layout_for(weight)
        other = weight.clone()
        other[:, 20:] = heavy_tailed(50, 44).clamp(-4, 4)
        chosen = codec.encode(weight, layout, fit, importance).scale
        assert torch.equal(chosen, codec.encode(other, layout, fit, importance).scale)
        assert not torch.equal(chosen, codec.encode(weight, layout, fit).scale)

    def test_columns_of_no_importance_are_still_covered(self) -> None:
        weight = normal(8, 64)
        weight[:, 63] = 30
        importance = torch.ones(64)
        importance[63] = 0
        layout = layout_for(weight)
        planes = codec.encode(weight, layout, importance=importance)
        low, high = sub_cells(planes, layout)
        assert ((low <= weight) & (weight <= high)).all()

    def test_no_importance_at_all_still_encodes(self) -> None:
        weight = normal(2, 64)
        layout = layout_for(weight)
        planes = codec.encode(weight, layout, importance=torch.zeros(64))
        assert (codec.decode(planes, layout) - weight).abs().max() < 0.1

    def test_a_factor_does_not_matter(self) -> None:
        weight, importance = heavy_tailed(30, 100), normal(100).square()
        layout = layout_for(weight)
        planes = codec.encode(weight, layout, importance=importance)
        for factor in (2.0**-60, 2.0**60):
            assert same_planes(planes, codec.encode(weight, layout, importance=importance * factor))


class TestInvariance:
    @given(st.permutations(range(8)), st.sampled_from(FITS))
    @settings(max_examples=10, deadline=None)
    def test_groups_do_not_see_each_other(self, order: list[int], fit: str) -> None:
        weight = heavy_tailed(8, 64)
        layout = layout_for(weight)
        alone = codec.encode(weight, layout, fit)
        row = layout_for(weight[order].view(1, 512))
        together = codec.encode(weight[order].view(1, 512), row, fit)
        assert torch.equal(together.scale.view(8, 1), alone.scale[order])
        assert torch.equal(together.index.view(8, -1), alone.index[order])
        assert torch.equal(together.deviation.view(8, -1), alone.deviation[order])

    @given(st.integers(-40, 40))
    @settings(max_examples=10, deadline=None)
    def test_a_power_of_two_moves_only_the_exponent(self, power: int) -> None:
        weight = heavy_tailed(4, 64)
        layout = Layout(64, exponent=-10)
        moved = Layout(64, exponent=-10 + power)
        assert same_planes(codec.encode(weight, layout), codec.encode(weight * 2.0**power, moved))

    def test_the_opposite_weights_take_the_opposite_scale(self) -> None:
        """Where both signs are equally good, f being odd, both take the positive one."""
        weight = heavy_tailed(200, 64)
        plus, layout = encoded(weight)
        minus, _ = encoded(-weight)
        turned = (plus.scale ^ -0x8000) == minus.scale
        assert (turned | (plus.scale == minus.scale) & (plus.scale > 0)).all()
        assert turned.float().mean() > 0.9
        assert torch.equal(codec.decode(plus, layout), -codec.decode(minus, layout))

    @pytest.mark.parametrize("grid", GRIDS)
    def test_encoding_a_decoded_weight_again_loses_little(self, grid: str) -> None:
        weight = normal(20, 64)
        planes, layout = encoded(weight, grid=grid)
        once = codec.decode(planes, layout)
        twice = codec.decode(codec.encode(once, layout), layout)
        assert (twice - once).norm() <= (once - weight).norm() * 1.2


class TestExtremes:
    @pytest.mark.parametrize("deviation_bits", DEVIATION_BITS, ids="deviation{}".format)
    @pytest.mark.parametrize("grid", GRIDS)
    def test_zeros_take_the_smallest_scale(self, grid: str, deviation_bits: int) -> None:
        weight = normal(2, 128)
        weight[1, 64:] = 0
        planes, layout = encoded(weight, grid=grid, deviation_bits=deviation_bits)
        assert planes.scale[1, 1].item() == 0x0400
        assert (index_tier(planes, layout)[1, 64:] == 0).all()
        bits = torch.tensor(0.5 ** (deviation_bits + 1) if deviation_bits else 0.0)
        smallest = layout.curve.value(bits, torch.tensor(0)) * 2.0 ** (layout.exponent - 14)
        assert (codec.decode(planes, layout)[1, 64:] == smallest).all()

    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("grid", GRIDS)
    @pytest.mark.parametrize("index_bits", INDEX_BITS, ids="index{}".format)
    @pytest.mark.parametrize("deviation_bits", DEVIATION_BITS, ids="deviation{}".format)
    def test_the_largest_floats(
        self, fit: str, grid: str, index_bits: int, deviation_bits: int
    ) -> None:
        """Some have no word that covers them: they saturate, and the file stays valid."""
        weight = torch.full((6, 32), LARGEST)
        weight[1] = -LARGEST
        weight[2, ::2] = -LARGEST
        weight[3, 1:] = 0
        weight[4] = 3.3e38
        weight[5, 7:] = -1.7e38
        arguments = {"grid": grid, "index_bits": index_bits, "deviation_bits": deviation_bits}
        planes, layout = encoded(weight, fit, group_size=32, **arguments)
        decoded = codec.decode(planes, layout)
        assert decoded.isfinite().all()
        error = (decoded.double() - weight.double()).abs() / LARGEST
        assert error.max() <= 0.65

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_the_largest_of_a_dtype_decodes_finite(self, dtype: torch.dtype) -> None:
        largest = torch.finfo(dtype).max
        weight = torch.tensor([[largest] * 32 + [-largest] * 8 + [largest / 3] * 24], dtype=dtype)
        planes, layout = encoded(weight)
        decoded = codec.decode(planes, layout, dtype)
        assert decoded.isfinite().all()
        assert ((decoded.double() - weight.double()).abs() <= largest * 0.09).all()

    @pytest.mark.parametrize("power", [-126, -127, -135, -140, -149])
    def test_denormals(self, power: int) -> None:
        weight = (heavy_tailed(4, 64) * 2.0**power).clamp(-(2.0**-120), 2.0**-120)
        planes, layout = encoded(weight)
        low, high = sub_cells(planes, layout)
        assert ((low <= weight) & (weight <= high)).all()
        decoded = codec.decode(planes, layout)
        assert ((decoded - weight).abs() <= (high - low).clamp(min=2.0**-149)).all()

    @given(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=32
        ),
        st.sampled_from(INDEX_BITS),
        st.sampled_from(DEVIATION_BITS),
        st.sampled_from(GRIDS),
    )
    @settings(max_examples=40, deadline=None)
    def test_any_finite_group_encodes_to_valid_planes(
        self, values: list[float], index_bits: int, deviation_bits: int, grid: str
    ) -> None:
        weight = torch.tensor([values])
        arguments = {"index_bits": index_bits, "deviation_bits": deviation_bits, "grid": grid}
        planes, layout = encoded(weight, group_size=32, **arguments)
        layout.check(planes)
        decoded = codec.decode(planes, layout)
        assert decoded.isfinite().all()
        error = (decoded.double() - weight.double()).abs().max()
        assert error <= 0.8 * weight.abs().max() + 1e-8


def test_groups_far_below_the_smallest_scale_get_a_valid_word() -> None:
    """A tensor may hold fp32's largest number and, elsewhere, denormals alone."""
    weight = torch.zeros(2, 64)
    weight[0, 0], weight[1] = torch.finfo(torch.float32).max, 2.0**-140
    layout = Layout(64, exponent=codec.exponent_for(weight.max().item()))
    planes = codec.encode(weight, layout)
    scale, _ = codec.read_words(planes.scale, layout)
    assert scale[1].abs().item() == 2.0 ** (layout.exponent - 14)
