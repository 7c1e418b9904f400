"""Products of one x with several weights on a GPU: those of each weight on its own, about."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phiquant import graph_ops
from phiquant.codec import Layout, Planes
from phiquant.ops import COUNT
from tests.cuda.support import ON_A_GPU, compiled_exact, on_gpu, phi, settings, typical_planes
from tests.cuda.test_linear import HALVES, TOLERANCE, error, sums_in_fp32
from tests.support import weight

pytestmark = ON_A_GPU
__all__ = ["sums_in_fp32"]  # used by every test
ROWS = {
    "queries, keys, values": (4096, 1024, 1024),
    "gate, up": (3000, 3000),
    "odd": (17, 1, 200),
    "one large": (9000, 16),
}


def linears(x: Tensor, weights: list[Planes], biases: list[Tensor], layout: Layout) -> list[Tensor]:
    lists = [[w[i] for w in weights if w[i] is not None] for i in range(COUNT - 1)]
    code = graph_ops.pack(*settings(layout), False)
    products: list[Tensor] = phi._linears(x, *lists, biases, layout.columns, code)
    return products


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("deviation", [0, 2, 4, 8])
@pytest.mark.parametrize("columns", [520, 4096])
@HALVES
def test_within_tolerance(
    dtype: torch.dtype, columns: int, deviation: int, rows: tuple[int, ...]
) -> None:
    layout = Layout(columns, 4, deviation, exponent=0)
    planes = [typical_planes(layout, count) for count in rows]
    there = [on_gpu(each) for each in planes]
    weights = [_decoded(each, layout) for each in there]
    biased = [torch.randn(count, dtype=dtype, device="cuda") for count in rows]
    for m in (1, 2, 3, 5, 8, 9, 16, 17, 70):
        x = torch.randn(m, columns, dtype=dtype, device="cuda") * 0.1
        for biases in ([], biased):
            found = linears(x, there, biases, layout)
            again = linears(x, there, biases, layout)
            for product, repeated, of, bias in zip(
                found, again, weights, biases or [None] * len(rows), strict=True
            ):
                assert product.shape == (m, len(of))
                assert torch.equal(product, repeated)
                assert error(x, of, product, bias) <= TOLERANCE[dtype]


@pytest.mark.parametrize("deviation", [0, 4])
def test_weights_that_a_block_takes_in_two_passes(deviation: int) -> None:
    """They are multiplied one after the other."""
    layout = Layout(4096, 4, deviation, exponent=0)
    planes = on_gpu(typical_planes(layout, 9000))
    for m in (1, 4, 8, 16):
        x = torch.randn(m, 4096, dtype=torch.bfloat16, device="cuda")
        found = linears(x, [planes, planes], [], layout)
        wanted = phi.linear(x, *planes, None, layout.columns, *settings(layout))
        assert all(error(x, _decoded(planes, layout), each) <= TOLERANCE[x.dtype] for each in found)
        if m > 4:
            assert all(torch.equal(each, wanted) for each in found)


def exact_weights(columns: int, *rows: int) -> tuple[list[Planes], Layout]:
    layout = Layout(columns, 4, 4, exponent=-10, stored_dtype=torch.bfloat16)
    made = [weight(count, columns, dtype=torch.bfloat16) for count in rows]
    return [on_gpu(compiled_exact(of, layout)) for of in made], layout


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("columns", [100, 512, 4096])
@pytest.mark.parametrize("m", [1, 3, 4, 5, 8, 9, 16, 17])
def test_exact_weights(m: int, columns: int, with_bias: bool) -> None:
    for rows in ((19, 67), (1100, 8, 300), (1, 1, 1), (9000, 24)):
        planes, layout = exact_weights(columns, *rows)
        x = torch.randn(m, columns, dtype=torch.bfloat16, device="cuda")
        biases = [torch.randn(count, dtype=x.dtype, device="cuda") for count in rows]
        found = linears(x, planes, biases if with_bias else [], layout)
        again = linears(x, planes, biases if with_bias else [], layout)
        for product, repeated, of, bias in zip(found, again, planes, biases, strict=True):
            exact = _decoded(of, layout)
            assert torch.equal(product, repeated)
            assert error(x, exact, product, bias if with_bias else None) <= TOLERANCE[x.dtype]


def test_exact_weights_that_are_not_multiplied_together() -> None:
    """More tiles than a block keeps sums of, rows at an odd address among them, and fp16 rows."""
    planes, layout = exact_weights(64, 60_000, 24)
    odd = torch.randn(3 * 64 + 1, dtype=torch.bfloat16, device="cuda")[1:].view(3, 64)
    for x in (odd, odd.clone(), odd.half()):
        for product, of in zip(linears(x, planes, [], layout), planes, strict=True):
            alone = phi.linear(x, *of, None, 64, *settings(layout))
            assert torch.equal(product, alone)


def _decoded(planes: Planes, layout: Layout) -> Tensor:
    weight: Tensor = phi.decode(*planes, layout.columns, *settings(layout), torch.float32)
    return weight


def test_a_weight_without_rows_and_an_x_without_rows() -> None:
    layout = Layout(256, 4, 4, exponent=0)
    some = on_gpu(typical_planes(layout, 48))
    none = Planes(*(None if plane is None else plane[:0] for plane in some))
    for m in (0, 1, 8):
        x = torch.randn(m, 256, dtype=torch.bfloat16, device="cuda")
        found = linears(x, [some, none, some], [], layout)
        assert [tuple(each.shape) for each in found] == [(m, 48), (m, 0), (m, 48)]
        assert torch.equal(found[0], found[2])


def test_none() -> None:
    x = torch.randn(1, 256, dtype=torch.bfloat16, device="cuda")
    assert linears(x, [], [], Layout(256, 4, 4, exponent=0)) == []


def test_lists_of_another_length_are_refused() -> None:
    layout = Layout(256, 4, 4, exponent=0)
    weights = [on_gpu(typical_planes(layout, 48))] * 2
    x = torch.randn(1, 256, dtype=torch.bfloat16, device="cuda")
    with pytest.raises(ValueError, match=r"^bias: expected 2 tensors, for 2 weights .* got 1"):
        linears(x, weights, [x.new_ones(48)], layout)
    with pytest.raises(ValueError, match=r"^bias: expected torch.bfloat16 of shape \(48,\)"):
        linears(x, weights, [x.new_ones(48), x.new_ones(47)], layout)
