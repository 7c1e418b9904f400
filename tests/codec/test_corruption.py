"""Corrupt planes: an error that names the block, or a weight in the same sub-cell; no bad read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phiquant import codec
from phiquant.codec import DTYPES, Layout, Planes, cut_rows
from phiquant.codec.layout import PADDING
from phiquant.codec.remainder import begins_of
from tests.codec.support import bits, exact, heavy_tailed, normal, sub_cells

ROWS, COLUMNS, BLOCKS = 13, 1100, 39  # two starts; the last block of a row is short
CORRUPT = "the planes are corrupt, or of two different encodings"
END = (1 << 63) - 1


def block_error(block: int, what: str = "") -> Any:
    return pytest.raises(ValueError, match=rf"remainder: block {block} {what}.*{CORRUPT}")


def any_block_error() -> Any:
    return pytest.raises(ValueError, match=rf"remainder: block \d+ .*{CORRUPT}")


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return normal(ROWS, COLUMNS, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def stored(weight: Tensor) -> tuple[Planes, Layout]:
    return exact(weight, grid="golden")


def changed(planes: Planes, name: str, change: Callable[[Tensor], Any]) -> Planes:
    """Planes with a copy of one of them changed in place."""
    plane = getattr(planes, name).clone()
    change(plane)
    return planes._replace(**{name: plane})


def loose(planes: Planes, layout: Layout) -> tuple[Planes, Tensor]:
    """A view of every other row, each block with a start of its own, and those starts."""
    view = cut_rows(planes, layout.columns, lambda t: t[::2])
    assert view.starts.numel() == view.offsets.numel()
    return view, view.starts


class TestPlaces:
    @pytest.mark.parametrize("step", [1, -1, 1 << 14])
    @pytest.mark.parametrize("block", [0, 1, 17, BLOCKS - 1])
    def test_an_offset(self, stored: tuple[Planes, Layout], block: int, step: int) -> None:
        planes, layout = stored

        def move(offsets: Tensor) -> None:
            offsets.view(-1)[block] += step

        with any_block_error() as error:
            codec.decode(changed(planes, "offsets", move), layout)
        named = int(str(error.value).split()[2])
        assert named in (block, block - 1)

    @pytest.mark.parametrize("value", [1, -1, 1 << 40, END, -END - 1, END - 3])
    @pytest.mark.parametrize("number", [0, 1])
    def test_a_start(self, stored: tuple[Planes, Layout], number: int, value: int) -> None:
        planes, layout = stored

        def move(starts: Tensor) -> None:
            starts[number] = value

        with any_block_error() as error:
            codec.decode(changed(planes, "starts", move), layout)
        assert int(str(error.value).split()[2]) in (0, 31, 32)

    @pytest.mark.parametrize("value", [-1, -END - 1, END, END - 7, 1 << 60, 1 << 61])
    @pytest.mark.parametrize("block", [0, 11, 20])
    def test_a_start_of_a_view(self, stored: tuple[Planes, Layout], block: int, value: int) -> None:
        planes, layout = stored
        view, _ = loose(planes, layout)

        def move(starts: Tensor) -> None:
            starts[block] = value

        with block_error(block, "is not inside of the remainder plane"):
            codec.decode(changed(view, "starts", move), layout)

    def test_a_start_of_a_view_near_the_end(self, stored: tuple[Planes, Layout]) -> None:
        planes, layout = stored
        view, starts = loose(planes, layout)
        last = view.starts.numel() - 1
        end = view.remainder.numel() - PADDING
        for value in range(int(starts[last]) + 1, end + PADDING + 2):
            bad = changed(view, "starts", lambda s, value=value: s[last].fill_(value))
            with block_error(last, "is not inside"):
                codec.decode(bad, layout)

    def test_too_few_starts(self, stored: tuple[Planes, Layout]) -> None:
        planes, layout = stored
        with pytest.raises(ValueError, match=r"weight\.starts: expected .*\(2,\), got .*\(1,\)"):
            codec.decode(planes._replace(starts=planes.starts[:1]), layout)


class TestPayload:
    @pytest.mark.parametrize("missing", [1, 2, 100])
    def test_truncated(self, stored: tuple[Planes, Layout], missing: int) -> None:
        planes, layout = stored
        cut = planes._replace(remainder=planes.remainder[:-missing])
        with any_block_error() as error:
            codec.decode(cut, layout)
        assert int(str(error.value).split()[2]) >= BLOCKS - 2

    def test_longer(self, stored: tuple[Planes, Layout]) -> None:
        planes, layout = stored
        longer = torch.cat([planes.remainder, planes.remainder[:1]])
        with block_error(BLOCKS - 1, "does not end where the next one begins"):
            codec.decode(planes._replace(remainder=longer), layout)

    @pytest.mark.parametrize("size", [0, 1, PADDING - 1])
    def test_shorter_than_the_padding(self, stored: tuple[Planes, Layout], size: int) -> None:
        planes, layout = stored
        with pytest.raises(ValueError, match=r"weight\.remainder: expected .*\(8,\)"):
            codec.decode(planes._replace(remainder=planes.remainder[:size]), layout)

    @pytest.mark.parametrize("block", [0, 2, 19, BLOCKS - 1])
    def test_a_rank_that_is_not_in_its_cell(
        self, stored: tuple[Planes, Layout], block: int
    ) -> None:
        planes, layout = stored
        begins = [*begins_of(planes).flatten().tolist(), planes.remainder.numel() - PADDING]
        part = slice(begins[block], begins[block + 1])
        bad = changed(planes, "remainder", lambda payload: payload[part].fill_(0xFF))
        with block_error(block, "holds a remainder that is not in its sub-cell"):
            codec.decode(bad, layout)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_bit_is_found_or_stays_in_the_sub_cell(self, dtype: torch.dtype) -> None:
        weight = normal(2, 600, dtype=dtype)
        planes, layout = exact(weight, grid="golden")
        low, high = sub_cells(planes, layout)
        found = 0
        for bit in range(0, 8 * (planes.remainder.numel() - PADDING), 197):
            bad = changed(
                planes, "remainder", lambda p, at=bit: p[at // 8].bitwise_xor_(1 << at % 8)
            )
            try:
                decoded = codec.decode(bad, layout, dtype)
            except ValueError as error:
                assert CORRUPT in str(error)  # noqa: PT017
                found += 1
            else:
                assert (bits(decoded) != bits(weight)).sum() <= 1  # no one's: the last of a byte
                assert ((low <= decoded.float()) & (decoded.float() <= high)).all()
        assert found > 0 or dtype == torch.float32


class TestOtherEncodings:
    """Widths follow from the lossy planes: those of another weight do not fit the remainder."""

    @pytest.fixture
    def other(self, stored: tuple[Planes, Layout]) -> Planes:
        weight = normal(ROWS, COLUMNS, seed=1, dtype=torch.bfloat16)
        layout = stored[1]
        return codec.encode_remainder(weight, codec.encode(weight, layout), layout)

    @pytest.mark.parametrize(
        "names",
        [
            ("index",),
            ("deviation",),
            ("scale",),
            ("index", "deviation", "scale"),
            ("remainder",),
            ("remainder", "offsets", "starts"),
            ("offsets", "starts"),
        ],
        ids="+".join,
    )
    def test_are_an_error(
        self, stored: tuple[Planes, Layout], other: Planes, names: tuple[str, ...]
    ) -> None:
        planes, layout = stored
        mixed = planes._replace(**{name: getattr(other, name) for name in names})
        with any_block_error():
            codec.decode(mixed, layout)

    def test_of_the_same_weight_with_another_fit(self, weight: Tensor) -> None:
        first, layout = exact(weight, "index")
        second, _ = exact(weight, "deviation")
        mixed = Planes(*first[:4], *second[4:])
        with any_block_error():
            codec.decode(mixed, layout)

    @pytest.mark.parametrize("stored_dtype", [torch.float16, torch.float32], ids=str)
    def test_read_as_another_dtype(
        self, stored: tuple[Planes, Layout], stored_dtype: torch.dtype
    ) -> None:
        planes, layout = stored
        wrong = Layout(COLUMNS, grid="golden", exponent=layout.exponent, stored_dtype=stored_dtype)
        with any_block_error():
            codec.decode(planes, wrong)


NAMES = ("index", "deviation", "deviation_low", "scale", "remainder", "offsets", "starts")


@given(
    st.sampled_from(DTYPES),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.integers(0, 1 << 20), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=120)
def test_any_bytes_decode_or_are_an_error(
    dtype: torch.dtype, view: bool, changes: list[tuple[str, int, int]]
) -> None:
    """Never an IndexError, which would be a read outside of a plane."""
    planes, layout = exact(heavy_tailed(5, 600).to(dtype), deviation_bits=8, grid="golden")
    if view:
        planes, _ = loose(planes, layout)
    for name, place, value in changes:
        octets = bytearray(getattr(planes, name).numpy().tobytes())
        octets[place % len(octets)] = value
        plane = torch.frombuffer(octets, dtype=getattr(planes, name).dtype)
        planes = planes._replace(**{name: plane.view(getattr(planes, name).shape)})
    try:
        decoded = codec.decode(planes, layout, dtype)
    except ValueError as error:
        assert str(error).startswith(("remainder: block", "scale: a word"))  # noqa: PT017
    else:
        assert decoded.shape == (3 if view else 5, 600)
