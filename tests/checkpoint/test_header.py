"""Headers: every number comes back, and no other number is taken."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phiquant.checkpoint.header import FIELDS, Header
from phiquant.codec.encode import FITS
from phiquant.codec.layout import DEVIATION_BITS, DTYPES, GROUP_SIZES, INDEX_BITS, PADDING
from phiquant.grid import GRIDS
from tests.checkpoint.support import kinds

EXACT = kinds()["exact 8"]
NAMES = [
    "version", "index_bits", "deviation_bits", "group_size", "grid", "exponent", "fit",
    "stored_dtype", "dtype", "transposed", "column_dims", "remainder", "exceptions", "has_checksum",
]  # fmt: skip
LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1


def numbers(**changes: int) -> list[int]:
    """Those of a whole header of shape (4, 600), with some changed."""
    of = Header.of(EXACT()).to_tensor().tolist()
    for name, value in changes.items():
        of[NAMES.index(name)] = value
    return of


@pytest.mark.parametrize("kind", kinds())
def test_a_header_describes_all_planes(kind: str) -> None:
    tensor = kinds()[kind]()
    header = Header.from_tensor(Header.of(tensor).to_tensor())
    assert header == Header.of(tensor)
    assert header.shape == tuple(tensor.shape)
    names = {"offsets": "offset", "starts": "start", "exceptions": "exception"}
    for plane, (dtype, shape) in header.planes.items():
        held = getattr(tensor, f"{names.get(plane, plane)}_plane")
        assert (held.dtype, tuple(held.shape)) == (dtype, shape), plane
    absent = [p for p in (*tensor.planes, tensor.checksum_plane) if p is None]
    assert len(header.planes) + len(absent) == 9
    assert all(getattr(tensor, name) == value for name, value in header.attributes.items())


@st.composite
def valid_numbers(draw: st.DrawFn) -> list[int]:
    """Any header that version 1 allows."""
    shape = draw(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=3))
    transposed = len(shape) > 1 and draw(st.booleans())
    exact = draw(st.booleans())
    return [
        1,
        draw(st.sampled_from(INDEX_BITS)),
        draw(st.sampled_from(DEVIATION_BITS[1:] if exact else DEVIATION_BITS)),
        draw(st.sampled_from(GROUP_SIZES)),
        draw(st.integers(0, len(GRIDS) - 1)),
        draw(st.integers(-112, 112)),
        draw(st.integers(0, len(FITS) - 1)),
        draw(st.integers(0, len(DTYPES) - 1)),
        draw(st.integers(0, len(DTYPES) - 1)),
        int(transposed),
        1 if transposed else draw(st.integers(1, len(shape))),
        draw(st.integers(PADDING, 1 << 62)) if exact else 0,
        draw(st.integers(0, math.prod(shape))),
        int(exact and draw(st.booleans())),
        *shape,
    ]


@given(valid_numbers())
def test_every_valid_header_comes_back(said: list[int]) -> None:
    header = Header.from_tensor(torch.tensor(said))
    assert header.to_tensor().tolist() == said
    assert all(math.prod(shape) > 0 for _, shape in header.planes.values())


@given(st.lists(st.integers(LOWEST, HIGHEST) | st.integers(-2, 130), max_size=FIELDS + 18))
def test_any_numbers_are_a_header_or_an_error(said: list[int]) -> None:
    try:
        header = Header.from_tensor(torch.tensor(said, dtype=torch.int64))
    except ValueError:
        return
    assert header.to_tensor().tolist() == said


@given(st.sampled_from(range(FIELDS + 2)), st.integers(LOWEST, HIGHEST) | st.integers(-130, 130))
def test_one_changed_number_is_a_header_or_an_error(place: int, value: int) -> None:
    said = numbers()
    said[place] = value
    try:
        header = Header.from_tensor(torch.tensor(said))
    except ValueError:
        return
    assert header.to_tensor().tolist() == said
    assert math.prod(header.shape) <= 1 << 62


WRONG: dict[str, tuple[dict[str, int], str]] = {
    "version 0": ({"version": 0}, "format version must be 1, got 0; a newer"),
    "version 2": ({"version": 2}, "format version must be 1, got 2; a newer"),
    "index bits": ({"index_bits": 7}, "index_bits must be one of (2, 3, 4, 5, 6), got 7"),
    "deviation bits": ({"deviation_bits": 3}, "deviation_bits must be one of (0, 2, 4, 8), got 3"),
    "no deviation": ({"deviation_bits": 0}, "deviation_bits must be 2, 4 or 8 for an exact weight"),
    "group size 0": ({"group_size": 0}, "group_size must be one of (32, 64, 128), got 0"),
    "group size": ({"group_size": 1 << 40}, "group_size must be one of (32, 64, 128)"),
    "grid": ({"grid": 2}, "grid must be from 0 to 1, got 2"),
    "grid below": ({"grid": -1}, "grid must be from 0 to 1, got -1"),
    "exponent": ({"exponent": 113}, "exponent must be from -112 to 112, got 113"),
    "fit": ({"fit": 4}, "fit must be from 0 to 3, got 4"),
    "stored dtype": ({"stored_dtype": 3}, "stored_dtype must be from 0 to 2, got 3"),
    "dtype": ({"dtype": -1}, "dtype must be from 0 to 2, got -1"),
    "transposed": ({"transposed": 2}, "transposed must be from 0 to 1, got 2"),
    "transposed columns": ({"transposed": 1, "column_dims": 2}, "transposed: not possible"),
    "no columns": ({"column_dims": 0}, "shape (4, 600) with 0 dimensions of columns is none"),
    "columns": ({"column_dims": 3}, "shape (4, 600) with 3 dimensions of columns is none"),
    "remainder": ({"remainder": 7}, "remainder must be 0 or from 8 bytes, got 7"),
    "negative remainder": ({"remainder": -1}, "remainder must be 0 or from 8 bytes, got -1"),
    "huge remainder": ({"remainder": HIGHEST}, "remainder must be 0 or from 8 bytes"),
    "exceptions": ({"exceptions": 2401}, "exceptions must be from 0 to 2400, got 2401"),
    "negative exceptions": ({"exceptions": -1}, "exceptions must be from 0 to 2400, got -1"),
    "checksum": ({"has_checksum": 2}, "has_checksum must be from 0 to 1, got 2"),
    "lossy checksum": ({"remainder": 0}, "has_checksum: only a weight with a remainder"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_number_out_of_range_is_named(what: str) -> None:
    changes, message = WRONG[what]
    with pytest.raises(ValueError, match=re.escape(message)):
        Header.from_tensor(torch.tensor(numbers(**changes)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([], "expected 14 numbers and a shape of 1 to 16, got 14 numbers"),
        ([2] * 17, "expected 14 numbers and a shape of 1 to 16, got 31 numbers"),
        ([0, 600], "shape (0, 600) with"),
        ([4, -600], "shape (4, -600) with"),
        ([LOWEST, 2], "with 1 dimensions of columns is none"),
        ([1 << 40, 1 << 40], "has more weights than any machine holds"),
        ([HIGHEST], "with 1 dimensions of columns is none"),
    ],
    ids=str,
)
def test_a_shape_that_cannot_be_is_refused(shape: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Header.from_tensor(torch.tensor(numbers()[:FIELDS] + shape))


@pytest.mark.parametrize(
    "header",
    [
        torch.zeros(0, dtype=torch.int64),
        torch.tensor(1),
        torch.ones(1, 16, dtype=torch.int64),
        torch.ones(16),
        torch.ones(16, dtype=torch.int32),
        torch.ones(16, dtype=torch.bool),
    ],
    ids=lambda of: f"{of.dtype} {tuple(of.shape)}",
)
def test_other_tensors_are_no_header(header: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a vector of torch\.int64, got"):
        Header.from_tensor(header)
