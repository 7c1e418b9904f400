"""The checksum: of bits in a fixed order, however they are cut into parts."""

from __future__ import annotations

import hashlib

import pytest
import torch

from phiquant.checksum import Hashing, checksum, of_weight
from tests.support import DTYPES, weight, with_specials


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_that_of_the_bytes_in_memory(dtype: torch.dtype) -> None:
    of = with_specials(weight(5, 70, dtype=dtype))
    octets = bytes(of.view(torch.uint8).flatten().tolist())
    expected = hashlib.blake2b(octets, digest_size=16).digest()
    assert bytes(of_weight(of).tolist()) == expected


def test_parts_make_no_difference() -> None:
    of = weight(6, 70)
    whole = of_weight(of)
    assert torch.equal(checksum(of[i : i + 1] for i in range(6)), whole)
    assert torch.equal(checksum([of[:4], of[4:]]), whole)
    assert not torch.equal(checksum([of[4:], of[:4]]), whole)


def test_every_bit_counts() -> None:
    zeros = torch.zeros(4, 64)
    other = zeros.clone()
    other[3, 63] = -0.0
    assert torch.equal(zeros, other)
    assert not torch.equal(of_weight(zeros), of_weight(other))


def test_threads_make_the_same_of_weights_that_are_gone() -> None:
    weights = [weight(8, 70 * i, seed=i) for i in range(1, 9)] + [
        with_specials(weight(3, 64).half())
    ]
    expected = [of_weight(of) for of in weights]
    hashing = Hashing(threads=2)
    found = [hashing.add(of) for of in weights]
    for of in weights:
        of.zero_()
    hashing.finish()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
