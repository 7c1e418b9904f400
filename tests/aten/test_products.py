"""Products with a PhiTensor and rows looked up in it: on the planes, in every mode."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from phiquant import PhiTensor, ops
from phiquant.codec import Layout
from tests.aten.support import silently
from tests.support import DTYPES


class TestProducts:
    """Each runs on the planes: no fallback, no warning."""

    @pytest.mark.parametrize(
        "product",
        [
            lambda x, w: functional.linear(x, w),
            lambda x, w: functional.linear(input=x, weight=w, bias=torch.ones(16)),
            lambda x, w: functional.linear(x, w, bias=None),
            lambda x, w: x @ w.T,
            lambda x, w: x @ w.t(),
            lambda x, w: x @ w.mT,
            lambda x, w: torch.matmul(x, w.transpose(0, 1)),
            lambda x, w: x.matmul(w.transpose(-1, -2)),
            lambda x, w: torch.matmul(x, other=w.permute(1, 0)),
            lambda x, w: x[0] @ w.T,
            lambda x, w: x.expand(2, 3, 5, 192) @ w.T,
            lambda x, w: torch.mm(x, w.T),
            lambda x, w: torch.addmm(torch.ones(16), x, w.T),
            lambda x, w: w @ x.T,
            lambda x, w: w @ x[0],
            lambda x, w: torch.mm(w, x.t()),
            lambda x, w: functional.linear(x, w[4:12]),
            lambda x, w: functional.linear(x[:, 64:], w[:, 64:]),
            lambda x, w: functional.linear(x, w.view(-1, 192)),
        ],
    )
    def test_they_run_on_the_planes(
        self, matrix: PhiTensor, product: Callable[[Tensor, Any], Tensor]
    ) -> None:
        x = torch.randn(5, 192)
        result = silently(lambda: product(x, matrix))
        assert type(result) is Tensor
        torch.testing.assert_close(result, product(x, matrix.dequantize()))

    def test_they_pass_gradients_to_the_input(self, matrix: PhiTensor) -> None:
        for product in (functional.linear, lambda x, w: x @ w.T, lambda x, w: (w @ x.T).T):
            x, y = (torch.ones(5, 192, requires_grad=True) for _ in range(2))
            product(x, matrix).square().sum().backward()
            product(y, matrix.dequantize()).square().sum().backward()
            torch.testing.assert_close(x.grad, y.grad)

    @pytest.mark.filterwarnings("ignore:phiquant.*has no compressed form", "ignore:There is a perf")
    @pytest.mark.parametrize(
        "product",
        [
            pytest.param(lambda x, w: functional.linear(x, w), id="linear"),
            pytest.param(lambda x, w: functional.linear(x, w, torch.ones(16)), id="linear-bias"),
            pytest.param(lambda x, w: x @ w.T, id="matmul"),
            pytest.param(lambda x, w: torch.mm(x, w.T), id="mm"),
            pytest.param(lambda x, w: torch.addmm(torch.ones(16), x, w.T), id="addmm"),
            pytest.param(lambda x, w: w @ x.T, id="from-the-left"),
            pytest.param(
                lambda x, w: torch.vmap(lambda row: functional.linear(row, w))(x), id="vmap"
            ),
        ],
    )
    def test_they_pass_tangents(
        self, matrix: PhiTensor, product: Callable[[Tensor, Any], Tensor]
    ) -> None:
        x, tangent = torch.randn(2, 5, 192)
        of_dense = torch.func.jvp(lambda x: product(x, matrix.dequantize()), (x,), (tangent,))
        of_planes = torch.func.jvp(lambda x: product(x, matrix), (x,), (tangent,))
        torch.testing.assert_close(of_planes, of_dense)
        with forward_ad.dual_level():
            dual = product(forward_ad.make_dual(x, tangent), matrix)
            torch.testing.assert_close(tuple(forward_ad.unpack_dual(dual)), of_dense)

    def test_autocast(self, matrix: PhiTensor) -> None:
        x = torch.randn(5, 192)
        bias = torch.ones(16)
        for product in (lambda w: functional.linear(x, w, bias), lambda w: x @ w.T):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                ours, theirs = silently(lambda p=product: p(matrix)), product(matrix.dequantize())
            assert ours.dtype == theirs.dtype == torch.bfloat16
            torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            assert functional.linear(x, matrix).dtype == torch.float32

    def test_wrong_inputs_are_named(self, matrix: PhiTensor) -> None:
        with pytest.raises(ValueError, match=r"x: expected a last dimension of 192, got .*64"):
            functional.linear(torch.randn(3, 64), matrix)
        with pytest.raises(ValueError, match="x: expected bfloat16, float16 or float32, got"):
            functional.linear(torch.ones(3, 192).long(), matrix)
        with pytest.raises(ValueError, match=r"bias: expected torch.float32 of shape"):
            functional.linear(torch.ones(3, 192), matrix, torch.ones(3))
        with pytest.raises((ValueError, RuntimeError), match=r"expected|shapes|size"):
            _ = torch.ones(3, 192) @ matrix

    def test_devices_that_differ(self, matrix: PhiTensor) -> None:
        with pytest.raises(ValueError, match="x: is on cpu, but the weight is on meta"):
            functional.linear(torch.ones(3, 192), matrix.to("meta"))
        out = functional.linear(torch.ones(3, 192, device="meta"), matrix.to("meta"))
        assert (out.shape, out.device.type) == ((3, 16), "meta")

    def test_other_products_decode(self, matrix: PhiTensor) -> None:
        x, dense = torch.randn(5, 192), matrix.dequantize()
        out = torch.empty(5, 16)
        calls = [
            lambda w: torch.mm(x, w.T, out=out).clone(),
            lambda w: torch.addmm(torch.ones(16), x, w.T, beta=0.5, alpha=2),
            lambda w: torch.einsum("bi,oi->bo", x, w),
            lambda w: w @ w.T,
            lambda w: torch.bmm(x.expand(3, 5, 192), w.expand(3, 16, 192).transpose(1, 2)),
        ]
        for call in calls:
            with pytest.warns(UserWarning, match="has no compressed form"):
                result = call(matrix)
            torch.testing.assert_close(result, call(dense))


class TestEmbedding:
    def test_rows_are_gathered_before_they_are_decoded(self, matrix: PhiTensor) -> None:
        indices = torch.tensor([[3, 0], [15, 3]])
        for dtype in DTYPES:
            table = matrix.to(dtype)
            rows = silently(lambda t=table: functional.embedding(indices, t, padding_idx=0))
            assert torch.equal(rows, table.dequantize()[indices])
        assert functional.embedding(torch.tensor(2), matrix).shape == (192,)
        assert functional.embedding(torch.empty(0, dtype=torch.int32), matrix).shape == (0, 192)

    def test_wrong_indices(self, matrix: PhiTensor) -> None:
        for bad in (16, -1):
            with pytest.raises(IndexError, match="out of range"):
                functional.embedding(torch.tensor([bad]), matrix)

    def test_max_norm_would_write(self, matrix: PhiTensor) -> None:
        with pytest.raises(RuntimeError, match=r"block\.weight: embedding with max_norm writes"):
            functional.embedding(torch.tensor([0]), matrix, max_norm=1.0)


@pytest.mark.parametrize("rows", [[2, 0, 2], [-1, 3], [[1], [-2]], []], ids=str)
def test_rows_by_number_decode_those_rows_only(rows: list[int]) -> None:
    weight = PhiTensor.from_hp(torch.randn(8, 100, generator=torch.Generator().manual_seed(0)))
    numbers = torch.tensor(rows, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(weight[numbers], weight.dequantize()[numbers])


def test_a_row_number_out_of_range_is_an_error() -> None:
    with pytest.raises((IndexError, ValueError, RuntimeError), match=r"indices|index out of range"):
        PhiTensor.from_hp(torch.ones(8, 100))[torch.tensor([-9])]


class TestModes:
    """Gradient modes, tracers and transforms around a product."""

    @pytest.mark.skipif(not ops.compiled, reason="the reference kernels do build layouts")
    def test_a_call_does_little_in_python(
        self, matrix: PhiTensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Small layers would feel it: no layout is built, and few functions are called."""

        def refuse(self: Layout) -> None:
            raise AssertionError("a layout was built")

        monkeypatch.setattr(Layout, "__post_init__", refuse)
        x, calls = torch.ones(1, 192), []
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            calls.clear()
            with mode():
                functional.linear(x, matrix)  # prepares the planes
                sys.setprofile(lambda frame, event, _: calls.append(event))
                functional.linear(x, matrix)
                sys.setprofile(None)
            assert calls.count("call") < 5

    def test_without_gradients_there_are_none(self, matrix: PhiTensor) -> None:
        x = torch.ones(2, 192, requires_grad=True)
        with torch.no_grad():
            result = functional.linear(x, matrix)
            with torch.enable_grad():
                inner = functional.linear(x, matrix)
        assert not result.requires_grad
        assert not result.is_inference()
        assert inner.requires_grad
        with torch.inference_mode():
            assert functional.linear(x, matrix).is_inference()

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
    def test_tracers_record_the_op(self, matrix: PhiTensor, mode: Callable[[], Any]) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        x = torch.randn(2, 192)
        with mode():
            graph = make_fx(lambda x: functional.linear(x, matrix))(x)
            assert torch.equal(graph(x), functional.linear(x, matrix))
        assert torch.ops.phiquant.linear.default in [node.target for node in graph.graph.nodes]

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
    def test_vmap(self, matrix: PhiTensor, mode: Callable[[], Any]) -> None:
        x = torch.randn(3, 2, 192)
        with mode():
            mapped = torch.vmap(lambda row: functional.linear(row, matrix))(x)
        torch.testing.assert_close(mapped, functional.linear(x, matrix))
