"""Keys of planes: told apart from every other key, and never slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiquant.checkpoint.names import HEADER, PLANES, key_of, split_key

SEGMENT = st.text(st.characters(exclude_characters="."), min_size=1)


@given(st.lists(SEGMENT, min_size=1, max_size=4), st.sampled_from([HEADER, *PLANES]))
def test_every_name_comes_back(segments: list[str], plane: str) -> None:
    name = ".".join(segments)
    assert split_key(key_of(name, plane)) == (name, plane)


@pytest.mark.parametrize("leaf", ["weight", "w", "in_proj_weight", "_weight", "a_b_c", "index"])
@pytest.mark.parametrize("path", ["", "layers.0.", "a..b.", "__class__.", "_x_scale."])
@pytest.mark.parametrize("plane", [HEADER, *PLANES])
def test_usual_and_odd_names(path: str, leaf: str, plane: str) -> None:
    assert split_key(key_of(path + leaf, plane)) == (path + leaf, plane)


@pytest.mark.parametrize(
    "key",
    ["weight", "layers.0.bias", "layers._x.weight", "_weight", "__index", "logit_scale", "_scale",
     "a._weight_Index", "a._weight_index.b", ""],
)  # fmt: skip
def test_other_keys_are_no_planes(key: str) -> None:
    assert split_key(key) is None


@pytest.mark.parametrize("key", ["._" * 100_000, "_a" * 100_000, "_index" * 50_000 + "x"], ids=len)
def test_long_keys_take_no_time(key: str) -> None:
    start = time.perf_counter()
    assert split_key(key) is None
    assert time.perf_counter() - start < 2
