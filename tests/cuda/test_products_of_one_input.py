"""Products with the same input are one call on a GPU: for tests/cuda/test_compile.py, once there is
a kernel and "cuda" is among graph_ops.DEVICES."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import phiquant
from phiquant import PhiConfig
from tests.cuda.support import ON_A_GPU

pytestmark = [
    *ON_A_GPU,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
CONFIGS = (PhiConfig(deviation_bits=0), PhiConfig(), PhiConfig(exact=True))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Heads(nn.Module):
    """Queries, keys and values."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(128, rows, bias=bias) for rows in (64, 32, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)


@pytest.mark.parametrize("config", CONFIGS[:2], ids=["index", "index+4"])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@torch.inference_mode()
def test_products_of_one_input_are_one_call(bias: bool, rows: int, config: PhiConfig) -> None:
    module = Heads(bias).bfloat16().cuda()
    phiquant.quantize_(module, config)
    x = torch.randn(1, rows, 128, device="cuda").bfloat16()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    found, code = run_and_get_code(compiled, x)
    assert "phiquant._linears.default(" in "".join(code)
    assert "phiquant._linear.default(" not in "".join(code)
    torch.testing.assert_close(found, module(x), atol=2e-2, rtol=2e-2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compiled(x)
    for _ in range(2):
        x.normal_()
        graph.replay()
        torch.testing.assert_close(found, module(x), atol=2e-2, rtol=2e-2)
