"""torch.ops.phiquant._linear and _linears: the public ops' products, the layout in one number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.library import opcheck

from phiquant import PhiConfig, PhiTensor, graph_ops, ops

phi = torch.ops.phiquant
CONFIGS = (
    PhiConfig(),
    PhiConfig(2, 2, 32, grid="golden"),
    PhiConfig(6, 8, 128),
    PhiConfig(index_bits=5, deviation_bits=0),
    PhiConfig(exact=True),
)


def weight_of(config: PhiConfig, exponent: int | None = None) -> PhiTensor:
    torch.manual_seed(0)
    weight = torch.randn(6, 200).to(torch.bfloat16 if config.exact else torch.float32)
    return PhiTensor.from_hp(weight, config, exponent=exponent)


def arguments(weight: PhiTensor, bias: Any, int8: bool = False) -> tuple[Any, ...]:
    columns, *layout = weight.op_arguments
    return (*weight.planes, bias, columns, graph_ops.pack(*layout, int8))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(200,), (3, 200), (2, 1, 200), (0, 200)], ids=str)
def test_same_as_the_public_op(
    config: PhiConfig, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    weight, x = weight_of(config), torch.randn(shape, dtype=dtype)
    for bias in (None, torch.randn(6, dtype=dtype)):
        expected = phi.linear(x, *weight.planes, bias, *weight.op_arguments)
        assert torch.equal(phi._linear(x, *arguments(weight, bias)), expected)


def test_int8_activations() -> None:
    weight, x = weight_of(PhiConfig(deviation_bits=0)), torch.randn(3, 200)
    expected = phi.linear_int8(x, *weight.planes, None, *weight.op_arguments)
    assert torch.equal(phi._linear(x, *arguments(weight, None, int8=True)), expected)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_opcheck(config: PhiConfig) -> None:
    weight = weight_of(config)
    opcheck(phi._linear.default, (torch.randn(2, 200), *arguments(weight, torch.randn(6))))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_reference_is_the_public_op(config: PhiConfig) -> None:
    weight, x = weight_of(config), torch.randn(2, 200)
    expected = phi.linear(x, *weight.planes, None, *weight.op_arguments)
    assert torch.equal(graph_ops._linear(x, *arguments(weight, None)), expected)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("exponent", [-112, 0, 112])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [(2, 8, 128, "golden"), (6, 0, 32, "phi")], ids=str)
def test_what_is_packed_is_unpacked(
    layout: tuple[Any, ...], dtype: torch.dtype | None, exponent: int, int8: bool
) -> None:
    given = (*layout, exponent, dtype, int8)
    assert graph_ops.unpack(graph_ops.pack(*given)) == given


@pytest.mark.parametrize("code", [-1, 1 << 28])
def test_other_numbers_are_refused(code: int) -> None:
    *start, _ = arguments(weight_of(PhiConfig()), None)
    kernels = [graph_ops._linear, *([phi._linear] if ops.compiled else [])]
    for kernel in kernels:
        with pytest.raises(ValueError, match=f"layout: expected a number of 28 bits, got {code}"):
            kernel(torch.randn(2, 200), *start, code)


def test_layouts_that_are_none_are_refused() -> None:
    *start, code = arguments(weight_of(PhiConfig()), None)
    with pytest.raises(ValueError, match="index_bits must be one of"):
        phi._linear(torch.randn(2, 200), *start, code | 15)


ROWS = (6, 16, 1)
TOGETHER = tuple(PhiConfig(deviation_bits=bits) for bits in (0, 4, 8))
EVERY_TIER = (*TOGETHER, PhiConfig(exact=True))
EVERY_BIAS = pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])


class TestLinears:
    """Several weights: each product is what _linear makes."""

    def weights(self, config: PhiConfig) -> list[PhiTensor]:
        torch.manual_seed(0)
        dtype = torch.bfloat16 if config.exact else torch.float32
        return [PhiTensor.from_hp(torch.randn(rows, 200).to(dtype), config) for rows in ROWS]

    def arguments(self, weights: list[PhiTensor], with_bias: bool) -> list[Any]:
        planes = zip(*(weight.planes[:-1] for weight in weights), strict=True)
        lists = [[plane for plane in of if plane is not None] for of in planes]
        bias = [torch.randn(rows) for rows in ROWS] if with_bias else []
        columns, *layout = weights[0].op_arguments
        return [*lists, bias, columns, graph_ops.pack(*layout, False)]

    @EVERY_BIAS
    @pytest.mark.parametrize("config", EVERY_TIER, ids=str)
    @pytest.mark.parametrize("shape", [(200,), (3, 200), (2, 1, 200), (0, 200)], ids=str)
    def test_each_is_the_product(
        self, config: PhiConfig, shape: tuple[int, ...], with_bias: bool
    ) -> None:
        weights, x = self.weights(config), torch.randn(shape)
        given = self.arguments(weights, with_bias)
        products = phi._linears(x, *given)
        for i, weight in enumerate(weights):
            bias = given[7][i] if with_bias else None
            expected = phi._linear(x, *arguments(weight, bias))
            assert torch.equal(products[i], expected)
            assert products[i].is_contiguous()

    @EVERY_BIAS
    @pytest.mark.parametrize("config", EVERY_TIER, ids=str)
    def test_opcheck(self, config: PhiConfig, with_bias: bool) -> None:
        given = self.arguments(self.weights(config), with_bias)
        opcheck(phi._linears.default, (torch.randn(2, 200), *given))

    @pytest.mark.parametrize("kernel", [phi._linears, graph_ops._fake_linears], ids=["op", "fake"])
    @pytest.mark.parametrize(
        ("place", "name", "bits", "wanted", "got"),
        [
            (1, "deviation", 4, 3, 2),
            (2, "deviation_low", 8, 3, 2),
            (3, "scale", 4, 3, 2),
            (7, "bias", 4, 3, 2),
            (1, "deviation", 0, 0, 3),
            (2, "deviation_low", 4, 0, 3),
            (4, "remainder", 4, 0, 3),
            (5, "offsets", 4, 0, 3),
            (6, "starts", 4, 0, 3),
        ],
    )
    def test_lists_of_another_length_are_refused(
        self, kernel: Any, place: int, name: str, bits: int, wanted: int, got: int
    ) -> None:
        given = self.arguments(self.weights(PhiConfig(deviation_bits=bits)), with_bias=True)
        given[place] = given[place][:2] or list(given[0])
        message = f"^{name}: expected {wanted} tensors, for 3 weights with {bits} .* got {got}"
        with pytest.raises(ValueError, match=message):
            kernel(torch.randn(2, 200), *given)

    @pytest.mark.parametrize("kernel", [phi._linears, graph_ops._fake_linears], ids=["op", "fake"])
    def test_exact_weights_without_remainders_are_refused(self, kernel: Any) -> None:
        given = self.arguments(self.weights(PhiConfig()), with_bias=False)
        message = "^remainder: expected 3 tensors, for 3 exact weights with 4 .* got 0"
        with pytest.raises(ValueError, match=message):
            kernel(torch.randn(2, 200), *given[:-1], given[-1] | 1 << 25)


@pytest.fixture(params=[1, None], ids=["one thread", "threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param or before)
    yield
    torch.set_num_threads(before)


class TestRowsOfAllWeights:
    """Shares of several weights' rows that threads take, some of two weights: the same bits."""

    def given(
        self, rows: tuple[int, ...], config: PhiConfig, int8: bool = False
    ) -> tuple[list[PhiTensor], list[Any]]:
        torch.manual_seed(0)
        weights = [PhiTensor.from_hp(torch.randn(n, 576), config) for n in rows]
        planes = zip(*(weight.planes[:-1] for weight in weights), strict=True)
        lists = [[plane for plane in of if plane is not None] for of in planes]
        columns, *layout = weights[0].op_arguments
        return weights, [*lists, [], columns, graph_ops.pack(*layout, int8)]

    @pytest.mark.usefixtures("threads")
    @EVERY_BIAS
    @pytest.mark.parametrize("int8", [False, True], ids=["as it is", "int8"])
    @pytest.mark.parametrize("config", TOGETHER, ids=["index", "index+4", "index+8"])
    def test_same_bits(self, config: PhiConfig, int8: bool, with_bias: bool) -> None:
        rows = (40, 17, 192, 1)
        weights, given = self.given(rows, config, int8)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            biases = [torch.randn(n).to(dtype) for n in rows] if with_bias else []
            given[7] = biases
            for m in (1, 3, 8, 20):
                x = torch.randn(m, 1, 576).to(dtype)
                found = phi._linears(x, *given)
                for product, weight, bias in zip(found, weights, biases or [None] * 4, strict=True):
                    expected = phi._linear(x, *arguments(weight, bias, int8))
                    assert torch.equal(product, expected), (dtype, m, weight.shape)

    @pytest.mark.parametrize("rows", [(), (40,), (40, 0, 17)], ids=str)
    def test_none_one_and_an_empty_one(self, rows: tuple[int, ...]) -> None:
        weights, given = self.given((40, 40, 40), PhiConfig())
        for place in (0, 1, 3):
            given[place] = [plane[:n] for plane, n in zip(given[place], rows, strict=False)]
        x = torch.randn(2, 576)
        found = phi._linears(x, *given)
        assert [product.shape for product in found] == [(2, n) for n in rows]
        for product, weight, n in zip(found, weights, rows, strict=False):
            expected = phi._linear(x, *arguments(weight, None))[:, :n]
            torch.testing.assert_close(product, expected)  # torch's own sums depend on how many

    @pytest.mark.usefixtures("threads")
    def test_values_that_no_form_of_codes_holds(self) -> None:
        weights, given = self.given((40, 17), PhiConfig(deviation_bits=0))
        x = torch.randn(3, 576, dtype=torch.bfloat16)
        x[1, 0], x[2, 1] = torch.inf, 1e-30
        found = phi._linears(x, *given)
        for product, weight in zip(found, weights, strict=True):
            expected = phi._linear(x, *arguments(weight, None))
            torch.testing.assert_close(product, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.usefixtures("threads")
    @pytest.mark.parametrize("int8", [False, True], ids=["as it is", "int8"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_corrupt_scale_word(self, dtype: torch.dtype, int8: bool) -> None:
        _, given = self.given((64, 48, 192), PhiConfig(deviation_bits=0), int8)
        given[3][1][20, 3] = 0x7C00
        with pytest.raises(ValueError, match="scale: a word is not a normal fp16 number"):
            phi._linears(torch.randn(1, 576, dtype=dtype), *given)

    def test_inputs_that_do_not_fit(self) -> None:
        _, given = self.given((16, 8), PhiConfig())
        with pytest.raises(ValueError, match=r"x: expected a last dimension of 576"):
            phi._linears(torch.randn(2, 64), *given)
        given[7] = [torch.randn(16), torch.randn(16)]
        with pytest.raises(ValueError, match=r"bias: expected .* of shape"):
            phi._linears(torch.randn(2, 576), *given)
