"""Each contender multiplies with the weights that it says it stands for; a wrong one is caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import contenders
from benchmarks.contenders import Contender, build, error
from benchmarks.unavailable import Unavailable

OUTPUTS, INPUTS = 64, 256


@pytest.fixture(scope="module")
def weight() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.02


@pytest.fixture(scope="module")
def found(weight: Tensor) -> dict[str, Contender]:
    with torch.inference_mode():
        return {c.name: c for c in build(weight)[0]}


def rows(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, INPUTS, generator=generator).bfloat16()


@pytest.mark.parametrize("count", [1, 8, 40])
def test_products_are_those_of_the_weights(found: dict[str, Contender], count: int) -> None:
    with torch.inference_mode():
        for contender in found.values():
            assert error(contender, rows(count)) < contender.tolerance


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        (contenders.BF16, 16),
        (contenders.FP32, 32),
        (contenders.INT8, 8 + 16 / INPUTS),
        (contenders.INT4, 4.5),
        (contenders.INDEX, 4.25),
        (f"{contenders.INDEX}+4", 8.25),
    ],
)
def test_bytes_and_closeness(
    found: dict[str, Contender], weight: Tensor, name: str, bits: float
) -> None:
    contender = found[name]
    assert contender.read_bytes * 8 == bits * weight.numel()
    distance = (contender.dequantize() - weight).norm() / weight.norm()
    assert distance < (0.15 if bits < 8 else 0.02)


def test_the_exact_tier_is_the_original(found: dict[str, Contender], weight: Tensor) -> None:
    exact = found[contenders.EXACT]
    assert torch.equal(exact.dequantize(), weight.bfloat16().float())
    assert contenders.INDEX in found
    assert exact.read_bytes > found[contenders.INDEX].read_bytes


def one_element_off(x: Tensor, weight: Tensor) -> Tensor:
    product = functional.linear(x, weight)
    product[0, 5] += 0.2 * product.float().std()
    return product


@pytest.mark.parametrize(
    "product",
    [
        pytest.param(one_element_off, id="one element"),
        pytest.param(lambda x, w: functional.linear(x, w) * 1.01, id="scaled"),
        pytest.param(lambda x, w: functional.linear(x, w.roll(1, 0)), id="rows moved"),
        pytest.param(lambda x, w: functional.linear(x, w) * torch.nan, id="not a number"),
    ],
)
def test_a_wrong_product_is_caught(product: object, weight: Tensor) -> None:
    half = weight.bfloat16()
    right = Contender("mine", functional.linear, (half,), half.float)
    assert 0 < error(right, rows(3)) < right.tolerance
    with pytest.raises(AssertionError, match="mine: 3 rows are off by"):
        error(dataclasses.replace(right, product=product), rows(3))


def test_copies_take_turns(weight: Tensor) -> None:
    seen: list[int] = []

    def product(x: Tensor, weight: Tensor, bias: None) -> Tensor:
        seen.append(weight.data_ptr())
        return x

    contender = Contender("mine", product, (weight, None), lambda: weight)
    run = contender.rotating(cache=2 * contender.read_bytes)
    for _ in range(8):
        run(rows(1))
    assert seen[:4] == seen[4:]
    assert len(set(seen)) == 4


def test_missing_contenders_are_named(weight: Tensor) -> None:
    def absent(weight: Tensor) -> Iterator[Contender]:
        raise Unavailable("mine: pip install mine")
        yield

    found, missing = build(weight, (contenders.torch_dense, absent))
    assert [c.name for c in found] == [contenders.BF16, contenders.FP32]
    assert missing == ["mine: pip install mine"]
