"""Products of a captured graph begin while the kernel ahead of them runs, and wait for its end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from phiquant import PhiConfig, PhiTensor
from tests.cuda.support import ON_A_GPU

pytestmark = ON_A_GPU
COLUMNS = 512
CONFIGS = {
    "index": PhiConfig(deviation_bits=0),
    "index+4": PhiConfig(),
    "index+8": PhiConfig(deviation_bits=8),
    "exact": PhiConfig(exact=True),
}
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


class Step:
    """Means of long rows, which take some 50 us, and a product with them, as a graph."""

    def __init__(self, config: PhiConfig, rows: int) -> None:
        torch.manual_seed(0)
        self.weight = PhiTensor.from_hp(torch.randn(256, COLUMNS).bfloat16() / 20, config).cuda()
        self.x = torch.randn(rows, COLUMNS, (1 << 26) // (rows * COLUMNS), device="cuda").bfloat16()
        self.run()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.found = self.run()

    def run(self) -> Tensor:
        return functional.linear(self.x.mean(-1), self.weight)


@EVERY_CONFIG
@pytest.mark.parametrize("rows", [1, 2, 8, 16, 24, 64])
@torch.inference_mode()
def test_products_are_of_what_the_kernel_ahead_wrote(rows: int, config: PhiConfig) -> None:
    step = Step(config, rows)
    for factor in (1.5, -2.0, 0.25):
        step.x.mul_(factor)
        step.graph.replay()
        assert torch.equal(step.found, step.run())


@EVERY_CONFIG
@torch.inference_mode()
def test_they_begin_before_it_ends(config: PhiConfig) -> None:
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs compute capability 9.0")
    step = Step(config, 1)
    step.graph.replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step.graph.replay()
        torch.cuda.synchronize()
    kernels = [event for event in trace.events() if event.device_type == DeviceType.CUDA]
    ahead, product = sorted(kernels, key=lambda event: event.time_range.start)[-2:]
    assert product.time_range.start < ahead.time_range.end
    assert product.time_range.end > ahead.time_range.end


@torch.inference_mode()
def test_a_product_after_a_copy_begins_after_it() -> None:
    """Only kernels can be waited for while they run."""
    step = Step(PhiConfig(), 1)
    rows, x = step.x.mean(-1), torch.empty(1, COLUMNS, device="cuda").bfloat16()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.copy_(rows)
        found = functional.linear(x, step.weight)
    for _ in range(2):
        rows.neg_()
        graph.replay()
        assert torch.equal(found, functional.linear(rows, step.weight))
