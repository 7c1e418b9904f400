"""What small planes may not hold: said when they are read, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from phiquant import PhiTensor
from phiquant.checkpoint.contents import check_contents
from phiquant.codec import Layout
from tests.checkpoint.support import kinds

LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1
WORD = "scale: a word is not a normal fp16 number with a bend of its grid"
OUTSIDE, PAIRS = "is not inside of the remainder plane", "exceptions: expected ascending places"


def put(place: int, value: int) -> Callable[[Tensor], Tensor]:
    def damage(plane: Tensor) -> Tensor:
        plane = plane.clone()
        plane.view(-1)[place] = value
        return plane

    return damage


def check(tensor: PhiTensor, **planes: Tensor) -> None:
    layout = Layout(*tensor.op_arguments)
    check_contents(tensor.planes._replace(**planes), layout, tensor.numel())


@pytest.mark.parametrize("kind", kinds())
def test_what_is_written_passes(kind: str) -> None:
    check(kinds()[kind]())


DAMAGE: dict[str, tuple[str, str, Callable[[Tensor], Tensor], str]] = {
    "zero": ("4+4", "scale", put(3, 0), WORD),
    "denormal": ("4+4", "scale", put(3, 0x0208), WORD),
    "infinity": ("4+4", "scale", put(3, 0x7C00), WORD),
    "-infinity": ("4+4", "scale", put(-1, -0x0400), WORD),
    "NaN": ("4+4", "scale", put(0, 0x7E01), WORD),
    "bend of golden": ("golden", "scale", put(0, 0x3C01), WORD),
    "start below zero": ("many blocks", "starts", put(1, -5), OUTSIDE),
    "start far below": ("many blocks", "starts", put(1, LOWEST), OUTSIDE),
    "start near 2^63": ("many blocks", "starts", put(1, HIGHEST), OUTSIDE),
    "start beyond": ("many blocks", "starts", put(3, 1 << 40), OUTSIDE),
    "start in front": ("many blocks", "starts", put(1, 0), "begins before the one in front"),
    "first start": ("one block", "starts", put(0, 1), "first block does not begin at byte 0"),
    "first offset": ("many blocks", "offsets", put(0, 1), "first block does not begin at byte 0"),
    "offset": ("many blocks", "offsets", put(5, 0), "begins before the one in front"),
    "offset beyond": ("one block", "offsets", put(0, -1), OUTSIDE),
    "place below zero": ("special bfloat16", "exceptions", put(0, -1), PAIRS),
    "places fall": ("special bfloat16", "exceptions", put(2, LOWEST), PAIRS),
    "place beyond": (
        "special bfloat16", "exceptions", put(-2, 3600), "a place is not among the 3600 weights",
    ),
    "bits below zero": ("special bfloat16", "exceptions", put(1, -1), PAIRS),
    "too many bits": ("special bfloat16", "exceptions", put(1, 1 << 32), PAIRS),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what: str) -> None:
    kind, plane, damage, message = DAMAGE[what]
    tensor = kinds()[kind]()
    whole = getattr(tensor.planes, plane)
    with pytest.raises(ValueError, match=re.escape(message)):
        check(tensor, **{plane: damage(whole)})


@pytest.mark.parametrize("word", [0x0400, 0x0407, 0x7BFF, 0x7BF8 - (1 << 15), 0x3C05])
def test_every_normal_number_is_a_word(word: int) -> None:
    check(kinds()["4+4"](), scale=torch.full((8, 4), word, dtype=torch.int16))
