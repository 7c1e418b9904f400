"""Inductor gets its pass by itself, and keeps those that are there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode

import phiquant
from phiquant import PhiTensor, graph_ops, graph_passes, ops
from phiquant.graph_passes import JoinProducts

phi = torch.ops.phiquant
COLUMNS = 128


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    graph_passes._warn.cache_clear()
    with inductor.patch(post_grad_custom_pre_pass=None):
        yield


def test_caches_tell_passes_apart() -> None:
    assert JoinProducts().uuid() == JoinProducts(graph_ops.DEVICES).uuid()
    assert JoinProducts(["cpu"]).uuid() != JoinProducts(["cpu", "cuda"]).uuid()


def test_only_compiled_kernels_gain_by_it() -> None:
    assert ("cpu" in graph_ops.DEVICES) == ops.compiled
    assert ("cuda" in graph_ops.DEVICES) == ops.compiled_cuda


class Noting(graph_passes.CustomGraphPass):
    """A user's own pass."""

    calls = 0

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.calls += 1

    def uuid(self) -> str:
        return "noting"


class Derived(JoinProducts):
    pass


class TestRegister:
    @pytest.fixture(autouse=True)
    def trace(self) -> Iterator[None]:
        with tracing(TracingContext(None)):
            yield

    def types(self) -> list[type]:
        passes = inductor.post_grad_custom_pre_pass
        return [type(one) for one in (passes if isinstance(passes, list) else [passes])]

    def test_once(self) -> None:
        for _ in range(2):
            graph_passes.register()
        assert self.types() == [JoinProducts]

    @pytest.mark.skipif(not graph_passes._TAKES_LISTS, reason="this torch takes one pass")
    @pytest.mark.parametrize("several", [False, True], ids=["one", "list"])
    def test_after_a_pass_that_is_there(self, several: bool) -> None:
        inductor.post_grad_custom_pre_pass = [Noting()] if several else Noting()
        for _ in range(2):
            graph_passes.register()
        assert self.types() == [Noting, JoinProducts]

    def test_a_torch_of_one_pass_warns_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graph_passes, "_TAKES_LISTS", False)
        inductor.post_grad_custom_pre_pass = Noting()
        with pytest.warns(RuntimeWarning, match=r"stay apart.*derive it from"):
            graph_passes.register()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            graph_passes.register()
        assert self.types() == [Noting]

    def test_a_derived_pass_is_enough(self) -> None:
        inductor.post_grad_custom_pre_pass = Derived()
        graph_passes.register()
        assert self.types() == [Derived]

    def test_the_fake_of_a_product_registers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graph_ops, "DEVICES", frozenset({"cpu"}))
        weight = PhiTensor.from_hp(torch.randn(16, COLUMNS))
        columns, *layout = weight.op_arguments
        for device, found in (("cuda", type(None)), ("cpu", JoinProducts)):
            with FakeTensorMode():
                planes = [
                    None if plane is None else torch.empty(plane.shape, device=device)
                    for plane in weight.planes
                ]
                x = torch.empty(2, COLUMNS, device=device)
                phi._linear(x, *planes, None, columns, graph_ops.pack(*layout, False))
            assert self.types() == [found]


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(COLUMNS, rows) for rows in (64, 32, 32))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.q(x), self.k(x), self.v(x)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
class TestCompile:
    """The whole way, also where nothing is compiled."""

    @pytest.fixture(autouse=True)
    def on_a_cpu(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(graph_ops, "DEVICES", frozenset({"cpu"}))
        torch._dynamo.reset()
        with fresh_cache():
            yield
        torch._dynamo.reset()

    def joined(self, dynamic: bool = False, **options: Any) -> bool:
        module, x = Heads(), torch.randn(2, COLUMNS)
        phiquant.quantize_(module)
        if dynamic:
            torch._dynamo.mark_dynamic(x, 0)
        compiled = torch.compile(module, fullgraph=True, options=options or None)
        with torch.no_grad():
            found, code = run_and_get_code(compiled, x)
            torch.testing.assert_close(found, module(x))
        calls = [f"phiquant.{op}.default(" in "".join(code) for op in ("_linears", "_linear")]
        assert sum(calls) == 1
        return calls[0]

    def test_the_first_compile_joins(self) -> None:
        assert self.joined()

    def test_rows_of_any_number_stay_apart(self) -> None:
        assert not self.joined(dynamic=True)

    @pytest.mark.skipif(not graph_passes._TAKES_LISTS, reason="this torch takes one pass")
    def test_with_a_pass_of_the_user(self) -> None:
        inductor.post_grad_custom_pre_pass = own = Noting()
        assert self.joined()
        assert own.calls == 1

    def test_a_pass_among_the_options_replaces_it(self) -> None:
        with pytest.warns(RuntimeWarning, match="stay apart"):
            assert not self.joined(post_grad_custom_pre_pass=Noting())

    def test_no_pass_among_the_options_is_the_users_wish(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            assert not self.joined(post_grad_custom_pre_pass=None)

    def test_a_derived_pass_among_the_options(self) -> None:
        assert self.joined(post_grad_custom_pre_pass=Derived())
