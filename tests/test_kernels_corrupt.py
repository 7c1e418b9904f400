"""Corrupt exact weights: found by the compiled kernels and the reference, never read outside of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from phiquant import codec, ops
from phiquant.codec import Layout, Planes
from tests.support import weight
from tests.test_kernels_exact import compiled_decode, compiled_exact

pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")
LAYOUT = Layout(1100, exponent=-10, stored_dtype=torch.bfloat16)
OUTSIDE, APART, NO_MEMBER = "is not inside of the", "does not end where", "holds a remainder that"
ANY = f"remainder: block [0-9]+ ({OUTSIDE}|{APART}|{NO_MEMBER})"


@pytest.fixture(scope="module")
def planes() -> Planes:
    return compiled_exact(weight(40, LAYOUT.columns, dtype=torch.bfloat16), LAYOUT)


def put(plane: Tensor, place: int, value: int) -> Tensor:
    plane = plane.clone()
    plane.view(-1)[place] = value
    return plane


# The plane, how to damage it, and what the message must say.
DAMAGE: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "start below zero": ("starts", lambda p: put(p, 0, -5), f"block 0 {OUTSIDE}"),
    "start near 2^63": ("starts", lambda p: put(p, 1, (1 << 63) - 1), ANY),
    "start in another block": ("starts", lambda p: put(p, 1, 7), ANY),
    "offset": ("offsets", lambda p: put(p, 7, 3), ANY),
    "truncated": ("remainder", lambda p: p[:-100].clone(), f"block 11[89] {OUTSIDE}"),
    "a byte more": ("remainder", lambda p: functional.pad(p, (0, 1)), f"block 119 {APART}"),
    "bits": ("remainder", lambda p: torch.full_like(p, 255), f"block 0 {NO_MEMBER}"),
    "another scale": ("scale", lambda p: p.roll(1, 0), ANY),
    "no words": ("scale", torch.zeros_like, "scale: a word is not a normal fp16 number"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_the_block_named(planes: Planes, what: str) -> None:
    name, damage, message = DAMAGE[what]
    bad = planes._replace(**{name: damage(getattr(planes, name))})
    with pytest.raises(ValueError, match=message):
        compiled_decode(bad, LAYOUT)
    with pytest.raises(ValueError, match=message):
        codec.decode(bad, LAYOUT, torch.bfloat16)


@pytest.mark.parametrize("pairs", [[[5, 0], [4, 0]], [[5, 1 << 32]], [[-1, 0]], [[5, -1]]], ids=str)
def test_impossible_exceptions_are_found(planes: Planes, pairs: list[list[int]]) -> None:
    bad = planes._replace(exceptions=torch.tensor(pairs))
    for run in (compiled_decode, codec.decode):
        with pytest.raises(ValueError, match="exceptions: expected ascending places"):
            run(bad, LAYOUT)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_damage_is_found_or_harmless(data: st.DataObject) -> None:
    """Whatever bytes say: a ValueError that names the block, or weights of the right shape."""
    of = weight(3, 600, dtype=torch.bfloat16)
    layout = Layout(600, exponent=-10, stored_dtype=torch.bfloat16)
    whole = compiled_exact(of, layout)
    name = data.draw(st.sampled_from(["index", "deviation", "remainder", "offsets", "starts"]))
    plane = getattr(whole, name)
    info = torch.iinfo(plane.dtype)
    place = data.draw(st.integers(0, plane.numel() - 1))
    damaged = put(plane, place, data.draw(st.integers(info.min, info.max)))
    try:
        shape = compiled_decode(whole._replace(**{name: damaged}), layout).shape
    except ValueError as error:
        shape = of.shape if "remainder: block" in str(error) else None
    assert shape == of.shape


def test_dimensions_whose_product_overflows_are_refused() -> None:
    """No file holds such planes, but torch makes them where one dimension is 0."""
    leading = (1 << 31, 1 << 31, 2, 0)
    planes = Planes(
        index=torch.empty((*leading, 32), dtype=torch.uint8),
        deviation=None,
        deviation_low=None,
        scale=torch.empty((*leading, 1), dtype=torch.int16),
    )
    with pytest.raises(ValueError, match="expected a shape of fewer elements, got"):
        compiled_decode(planes, Layout(64, deviation_bits=0), torch.float32)
