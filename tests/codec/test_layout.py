"""Layouts: the sizes of planes, and errors that name what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from phiquant.codec import Layout, Planes
from tests.codec.support import encoded, normal


@pytest.mark.parametrize(
    ("arguments", "groups", "widths"),
    [
        ({"columns": 64}, 1, (32, 32, 0)),
        ({"columns": 1}, 1, (32, 32, 0)),
        ({"columns": 65}, 2, (64, 64, 0)),
        ({"columns": 40, "group_size": 32, "deviation_bits": 8}, 2, (32, 32, 32)),
        ({"columns": 384, "index_bits": 5, "deviation_bits": 2}, 6, (240, 96, 0)),
        ({"columns": 129, "index_bits": 3, "deviation_bits": 0, "group_size": 128}, 2, (96, 0, 0)),
        (
            {"columns": 128, "index_bits": 6, "deviation_bits": 8, "group_size": 128},
            1,
            (96, 64, 64),
        ),
        ({"columns": 96, "index_bits": 2, "group_size": 32}, 3, (24, 48, 0)),
    ],
    ids=lambda value: "-".join(str(v) for v in value.values()) if isinstance(value, dict) else None,
)
def test_sizes(arguments: dict[str, Any], groups: int, widths: tuple[int, int, int]) -> None:
    layout = Layout(**arguments)
    bits = (layout.index_bits, layout.high_bits, layout.low_bits)
    assert layout.groups == groups
    assert tuple(layout.row_bytes(width) for width in bits) == widths


@pytest.mark.parametrize(
    "name", ["index_bits", "deviation_bits", "group_size", "columns", "exponent"]
)
@pytest.mark.parametrize("value", [True, 4.0, "4", None, -1000, 1000.5], ids=repr)
def test_wrong_numbers_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Layout(**{"columns": 64, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("columns", 0),
        ("index_bits", 1),
        ("index_bits", 7),
        ("deviation_bits", 1),
        ("deviation_bits", 3),
        ("deviation_bits", 16),
        ("group_size", 16),
        ("group_size", 96),
        ("exponent", -113),
        ("exponent", 113),
        ("grid", "fibonacci"),
        ("grid", None),
    ],
)
def test_values_out_of_range_are_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value!r}"):
        Layout(**{"columns": 64, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("exponent", [-112, 0, 112])
def test_the_ends_of_the_exponents_are_allowed(exponent: int) -> None:
    assert Layout(64, exponent=exponent).exponent == exponent


class TestCheck:
    @pytest.fixture
    def planes(self) -> Planes:
        return encoded(normal(3, 70), deviation_bits=8)[0]

    @pytest.fixture
    def layout(self) -> Layout:
        return Layout(70, deviation_bits=8)

    def test_planes_that_fit_pass(self, planes: Planes, layout: Layout) -> None:
        layout.check(planes)

    @pytest.mark.parametrize("plane", Planes._fields)
    def test_a_missing_plane(self, planes: Planes, layout: Layout, plane: str) -> None:
        with pytest.raises(ValueError, match=rf"weight\.{plane}: missing"):
            layout.check(planes._replace(**{plane: None}))

    @pytest.mark.parametrize("plane", Planes._fields)
    def test_a_plane_of_another_width(self, planes: Planes, layout: Layout, plane: str) -> None:
        shorter = getattr(planes, plane)[:, :-1]
        with pytest.raises(
            ValueError, match=rf"weight\.{plane}: expected .*got .*{shorter.shape[1]}"
        ):
            layout.check(planes._replace(**{plane: shorter}))

    @pytest.mark.parametrize("plane", ["index", "deviation", "deviation_low"])
    def test_a_plane_with_other_rows(self, planes: Planes, layout: Layout, plane: str) -> None:
        with pytest.raises(ValueError, match=rf"weight\.{plane}: expected"):
            layout.check(planes._replace(**{plane: getattr(planes, plane)[:2]}))

    @pytest.mark.parametrize("plane", Planes._fields)
    def test_a_plane_of_another_dtype(self, planes: Planes, layout: Layout, plane: str) -> None:
        wider = getattr(planes, plane).to(torch.int32)
        with pytest.raises(ValueError, match=rf"weight\.{plane}: expected .*torch.int32"):
            layout.check(planes._replace(**{plane: wider}))

    @pytest.mark.parametrize(
        ("bits", "plane"), [(0, "deviation"), (4, "deviation_low"), (2, "deviation")]
    )
    def test_a_plane_that_the_layout_lacks_or_packs_otherwise(
        self, planes: Planes, bits: int, plane: str
    ) -> None:
        with pytest.raises(ValueError, match=rf"weight\.{plane}: "):
            Layout(70, deviation_bits=bits).check(planes)

    def test_a_scale_plane_without_dimensions(self, planes: Planes, layout: Layout) -> None:
        with pytest.raises(ValueError, match=r"weight\.scale: expected"):
            layout.check(planes._replace(scale=planes.scale[0, 0]))

    def test_the_error_names_the_tensor_it_was_given(self, planes: Planes, layout: Layout) -> None:
        with pytest.raises(ValueError, match=r"^model\.q_proj\.index: missing"):
            layout.check(planes._replace(index=None), name="model.q_proj")
