"""Ranks count floats: checked against every 16-bit float, and against neighbours in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phiquant.codec.ranks import first_rank, join_sign, split_sign

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def all_halves(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)


@HALVES
def test_every_16_bit_pattern_comes_back(dtype: torch.dtype) -> None:
    floats = all_halves(dtype)
    again = join_sign(*split_sign(floats), dtype)
    assert torch.equal(again.view(torch.int16), floats.view(torch.int16))


def test_fp32_patterns_come_back() -> None:
    bits = torch.randint(-(1 << 31), 1 << 31, (10_000,)).to(torch.int32)
    floats = bits.view(torch.float32)
    assert torch.equal(join_sign(*split_sign(floats), torch.float32).view(torch.int32), bits)


@HALVES
def test_first_rank_is_that_of_a_search_through_all_floats(dtype: torch.dtype) -> None:
    """At every float, right below and above it, and in between."""
    largest = torch.finfo(dtype).max
    floats = all_halves(dtype)[1 << 15 :].float()
    floats = floats[floats <= largest]
    middles = (floats[1:].double() + floats[:-1].double()).div(2).float()
    up, down = (torch.nextafter(floats, torch.tensor(end)) for end in (torch.inf, 0.0))
    edges = torch.cat([floats, middles, up, down])
    edges = edges[edges <= largest]
    for beyond in (False, True):
        wanted = torch.searchsorted(floats, edges, right=beyond)
        got = first_rank(edges, torch.tensor(beyond).expand(edges.shape), dtype)
        assert torch.equal(got, wanted)


@HALVES
def test_an_edge_above_all_floats_counts_all_finite_ones(dtype: torch.dtype) -> None:
    edge = torch.tensor([torch.inf])
    infinity = split_sign(torch.tensor([torch.inf], dtype=dtype))[1]
    assert torch.equal(first_rank(edge, torch.tensor([False]), dtype), infinity)


def test_in_fp32_an_edge_is_a_float_itself() -> None:
    edges = torch.tensor([0.0, 2.0**-149, 1.0, 3.0e38])
    ranks = edges.view(torch.int32).long()
    for beyond in (False, True):
        got = first_rank(edges, torch.tensor(beyond).expand(4), torch.float32)
        assert torch.equal(got, ranks + beyond)
