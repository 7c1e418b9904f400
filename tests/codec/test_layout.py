"""Layouts: the sizes of planes, and errors that name what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from phiquant.codec import Layout, Planes
from phiquant.codec.layout import PADDING
from tests.codec.support import encoded, exact, heavy_tailed, normal

LOSSY = Planes._fields[:4]
EXACT = ("remainder", "offsets", "starts")


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


@pytest.mark.parametrize("value", [torch.float64, torch.int8, "bfloat16", 16, True], ids=repr)
def test_stored_dtypes_without_ranks_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=rf"stored_dtype must be one of .*got {value!r}"):
        Layout(64, stored_dtype=value)  # type: ignore[arg-type]


def test_an_exact_weight_needs_a_deviation() -> None:
    with pytest.raises(ValueError, match=r"deviation_bits must be 2, 4 or 8 .*exact.*got 0"):
        Layout(64, deviation_bits=0, stored_dtype=torch.bfloat16)


def test_the_layout_without_remainder_differs_in_nothing_else() -> None:
    arguments = {"index_bits": 3, "deviation_bits": 8, "group_size": 32, "exponent": 5}
    layout = Layout(64, **arguments, stored_dtype=torch.float16)
    assert layout.without_remainder == Layout(64, **arguments)


@pytest.mark.parametrize(
    ("columns", "blocks"), [(1, 1), (512, 1), (513, 2), (1024, 2), (4096, 8), (4097, 9)]
)
def test_blocks_of_a_row(columns: int, blocks: int) -> None:
    assert Layout(columns).blocks == blocks


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

    @pytest.mark.parametrize("plane", LOSSY)
    def test_a_missing_plane(self, planes: Planes, layout: Layout, plane: str) -> None:
        with pytest.raises(ValueError, match=rf"weight\.{plane}: missing"):
            layout.check(planes._replace(**{plane: None}))

    @pytest.mark.parametrize("plane", LOSSY)
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

    @pytest.mark.parametrize("plane", LOSSY)
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


class TestCheckExact:
    @pytest.fixture
    def layout(self) -> Layout:
        return Layout(1100, grid="golden", stored_dtype=torch.bfloat16)

    @pytest.fixture
    def planes(self) -> Planes:
        """33 blocks: two starts."""
        return exact(heavy_tailed(11, 1100).bfloat16(), grid="golden")[0]

    @staticmethod
    def refused(planes: Planes, layout: Layout, plane: str, change: object) -> str:
        bad = change(getattr(planes, plane)) if callable(change) else change
        with pytest.raises(ValueError, match=rf"^layer\.{plane}: ") as error:
            layout.check(planes._replace(**{plane: bad}), name="layer")
        return str(error.value)

    def test_planes_that_fit_pass(self, planes: Planes, layout: Layout) -> None:
        layout.check(planes)
        layout.check(planes._replace(exceptions=None))

    def test_a_start_for_each_block_passes(self, planes: Planes, layout: Layout) -> None:
        layout.check(planes._replace(starts=torch.zeros(33, dtype=torch.int64)))

    @pytest.mark.parametrize("plane", EXACT)
    def test_a_missing_plane(self, planes: Planes, layout: Layout, plane: str) -> None:
        assert "missing" in self.refused(planes, layout, plane, None)

    @pytest.mark.parametrize("plane", EXACT)
    def test_planes_that_are_not_read(self, planes: Planes, layout: Layout, plane: str) -> None:
        lossy = planes._replace(**dict.fromkeys(EXACT))
        layout.without_remainder.check(lossy)
        extra = getattr(planes, plane)
        message = self.refused(lossy, layout.without_remainder, plane, extra)
        assert "the layout has no such plane" in message

    @pytest.mark.parametrize("plane", [*EXACT, "exceptions"])
    @pytest.mark.parametrize("dtype", [torch.int32, torch.uint16], ids=str)
    def test_another_dtype(
        self, planes: Planes, layout: Layout, plane: str, dtype: torch.dtype
    ) -> None:
        message = self.refused(planes, layout, plane, lambda t: t.to(dtype))
        assert f"got {dtype}" in message

    @pytest.mark.parametrize(
        ("plane", "change"),
        [
            ("remainder", lambda t: t[: PADDING - 1]),
            ("remainder", lambda t: t.view(1, -1)),
            ("remainder", lambda t: t[0]),
            ("offsets", lambda t: t[:, :-1]),
            ("offsets", lambda t: t[:-1]),
            ("offsets", lambda t: t.flatten()),
            ("starts", lambda t: t[:1]),
            ("starts", lambda t: t.repeat(2)),
            ("starts", lambda t: t.view(2, 1)),
            ("starts", lambda t: torch.zeros(32, dtype=torch.int64)),
            ("exceptions", lambda t: torch.zeros(3, 1, dtype=torch.int64)),
            ("exceptions", lambda t: torch.zeros(4, dtype=torch.int64)),
            ("exceptions", lambda t: torch.zeros((), dtype=torch.int64)),
        ],
    )
    def test_another_shape(
        self, planes: Planes, layout: Layout, plane: str, change: object
    ) -> None:
        assert "expected" in self.refused(planes, layout, plane, change)

    def test_exceptions_are_allowed_without_a_remainder(
        self, planes: Planes, layout: Layout
    ) -> None:
        lossy = planes._replace(**dict.fromkeys(EXACT))
        places = torch.tensor([[3, 0x7F800000]])
        layout.without_remainder.check(lossy._replace(exceptions=places))
