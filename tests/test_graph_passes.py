"""Products of a compiled graph that have the same input become one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from phiquant import PhiConfig, PhiTensor, graph_ops, graph_passes
from phiquant.early_kernels import early_kernels
from phiquant.graph_passes import join_products

phi = torch.ops.phiquant
COLUMNS = 128


class Products:
    """Products of weights with one input, which can be joined unless a test changes something."""

    def __init__(
        self,
        *rows: int,
        config: PhiConfig | None = None,
        shape: Any = (2,),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(0)
        configs = [config or PhiConfig()] * len(rows)
        self.weights = [
            PhiTensor.from_hp(torch.randn(n, COLUMNS).to(dtype), c)
            for n, c in zip(rows, configs, strict=True)
        ]
        self.biases: list[Tensor | None] = [None] * len(rows)
        self.x = torch.randn(*shape, COLUMNS)

    def __call__(self, x: Tensor, planes: Any, biases: Any) -> list[Tensor]:
        return [self.product(i, x, planes[i], biases[i]) for i in range(len(planes))]

    def product(self, i: int, x: Tensor, planes: Any, bias: Tensor | None) -> Tensor:
        columns, *layout = self.weights[i].op_arguments
        return phi._linear(x, *planes, bias, columns, graph_ops.pack(*layout, False))

    def joined(self, devices: Sequence[str] = ("cpu",)) -> list[int]:
        """How many weights each call of the graph takes, which computes what it did before."""
        planes = [tuple(weight.planes) for weight in self.weights]
        graph: GraphModule = make_fx(self, tracing_mode="fake")(self.x, planes, self.biases)
        wanted = graph(self.x, planes, self.biases)
        join_products(graph.graph, devices)
        graph.graph.lint()
        graph.recompile()
        for ours, theirs in zip(graph(self.x, planes, self.biases), wanted, strict=True):
            assert torch.equal(ours, theirs)
        return [
            len(node.args[1]) if node.target is phi._linears.default else 1
            for node in graph.graph.nodes
            if node.target in (phi._linear.default, phi._linears.default)
        ]


@pytest.mark.parametrize(
    ("count", "calls"),
    [(1, [1]), (2, [2]), (3, [3]), (4, [2, 2]), (5, [2, 3]), (6, [3, 3]), (7, [2, 2, 3])],
)
def test_up_to_three_at_a_time(count: int, calls: list[int]) -> None:
    assert sorted(Products(*[16] * count).joined()) == calls


@pytest.mark.parametrize("bits", [0, 2, 4, 8])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [(), (16,), (2, 4)], ids=str)
def test_products_are_the_same(shape: Any, with_bias: bool, bits: int) -> None:
    products = Products(48, 16, 32, config=PhiConfig(deviation_bits=bits), shape=shape)
    if with_bias:
        products.biases = [torch.randn(weight.shape[0]) for weight in products.weights]
    assert products.joined() == [3]


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_exact_weights_are_joined_where_that_pays(
    with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_passes, "EXACT", {"cpu"})
    products = Products(48, 16, 32, config=PhiConfig(exact=True), dtype=torch.bfloat16)
    if with_bias:
        products.biases = [torch.randn(weight.shape[0]) for weight in products.weights]
    assert products.joined() == [3]


def test_exceptions_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_passes, "EXACT", {"cpu"})
    products = Products(16, 16, 16, config=PhiConfig(exact=True))
    odd = torch.randn(16, COLUMNS)
    odd[3, 5] = torch.inf
    products.weights[1] = PhiTensor.from_hp(odd, PhiConfig(exact=True))
    assert products.weights[1].planes.exceptions is not None
    assert sorted(products.joined()) == [1, 2]


def test_products_stay_apart_where_kernels_wait_for_the_last_one_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_passes, "EARLY", {"cpu"})
    assert Products(16, 16).joined() == [2]
    with config.patch({"triton.enable_pdl": True}):
        assert Products(16, 16).joined() == [1, 1]
        with early_kernels():
            assert Products(16, 16).joined() == [2]


def test_values_are_known_to_inductor() -> None:
    products = Products(16, 32)
    planes = [tuple(weight.planes) for weight in products.weights]
    graph = make_fx(products, tracing_mode="fake")(products.x, planes, products.biases)
    join_products(graph.graph, ("cpu",))
    joined, *parts = (node for node in graph.graph.nodes if node.op == "call_function")
    assert [value.shape for value in joined.meta["val"]] == [(2, 16), (2, 32)]
    assert [part.meta["val"].shape for part in parts] == [(2, 16), (2, 32)]
    assert len(joined.meta["tensor_meta"]) == 2


class OtherInputs(Products):
    def product(self, i: int, x: Tensor, planes: Any, bias: Tensor | None) -> Tensor:
        return super().product(i, x + i, planes, bias)


class LateBias(Products):
    def product(self, i: int, x: Tensor, planes: Any, bias: Tensor | None) -> Tensor:
        return super().product(i, x, planes, x.new_ones(16) * 2)


class Written(Products):
    """A plane is written between two products."""

    def product(self, i: int, x: Tensor, planes: Any, bias: Tensor | None) -> Tensor:
        planes[3].copy_(planes[3] + 0)
        return super().product(i, x, planes, bias)


def other_layouts() -> Products:
    products = Products(16, 16)
    products.weights[1] = PhiTensor.from_hp(torch.randn(16, COLUMNS), PhiConfig(deviation_bits=0))
    return products


def one_bias() -> Products:
    products = Products(16, 16)
    products.biases[0] = torch.randn(16)
    return products


APART: dict[str, Callable[[], Products]] = {
    "other inputs": lambda: OtherInputs(16, 16),
    "exact": lambda: Products(16, 16, config=PhiConfig(exact=True)),
    "other layouts": other_layouts,
    "17 rows": lambda: Products(16, 16, shape=(17,)),
    "2 x 9 rows": lambda: Products(16, 16, shape=(2, 9)),
    "no rows": lambda: Products(16, 16, shape=(0,)),
    "a bias on one": one_bias,
    "a bias made later": lambda: LateBias(16, 16),
    "a plane written between": lambda: Written(16, 16),
}


@pytest.mark.parametrize("case", APART)
def test_others_stay_apart(case: str) -> None:
    assert APART[case]().joined() == [1, 1]


def test_devices_that_gain_nothing_are_left_alone() -> None:
    assert Products(16, 16).joined(devices=("cuda",)) == [1, 1]


def test_weights_of_any_rows() -> None:
    assert Products(24, 1, 17).joined() == [3]


def test_what_stays_apart_does_not_keep_others() -> None:
    products = Products(16, 24, 16, 32)
    products.biases[3] = torch.randn(32)
    assert products.joined() == [3, 1]
