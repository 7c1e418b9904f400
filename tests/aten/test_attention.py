"""nn.MultiheadAttention on compressed projections, in every mode, without a decoded one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phiquant
from phiquant import PhiConfig
from tests.aten.support import silently
from tests.support import relative

KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "packed": ({}, 128),
    "without bias": ({"bias": False}, 128),
    "apart": ({"kdim": 96, "vdim": 96}, 96),
    "with a key of its own": ({"add_bias_kv": True}, 128),
}


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("kind", KINDS)
class TestMultiheadAttention:
    @pytest.fixture
    def attention(self, kind: str, batch_first: bool, exact: bool) -> tuple[nn.Module, nn.Module]:
        settings, _ = KINDS[kind]
        plain = nn.MultiheadAttention(128, 4, batch_first=batch_first, **settings).eval()
        model = copy.deepcopy(plain)
        report = phiquant.quantize_(model, PhiConfig(exact=exact))
        assert {len(entry.shape) for entry in report.skipped} <= {1, 3}
        return model, plain

    @pytest.fixture
    def inputs(self, kind: str) -> tuple[Tensor, Tensor]:
        return torch.randn(2, 5, 128), torch.randn(2, 5, KINDS[kind][1])

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_outputs(
        self,
        attention: tuple[nn.Module, nn.Module],
        inputs: tuple[Tensor, Tensor],
        mode: Callable[[], Any],
        exact: bool,
    ) -> None:
        (model, plain), (query, key) = attention, inputs
        calls = [(query, key, key)] + [(query, query, query)] * (key.shape == query.shape)
        with mode():
            for given in calls:
                ours, theirs = silently(lambda g=given: model(*g)[0]), plain(*given)[0]
                assert relative(ours, theirs) < (1e-5 if exact else 0.02)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    half = silently(lambda g=given: model(*g)[0])
                assert half.dtype == torch.bfloat16
                assert relative(half, theirs) < 0.03

    def test_gradients(
        self,
        attention: tuple[nn.Module, nn.Module],
        inputs: tuple[Tensor, Tensor],
        exact: bool,
    ) -> None:
        (model, plain), (query, key) = attention, inputs
        x, y = (query.clone().requires_grad_() for _ in range(2))
        silently(lambda: model(x, key, key)[0].square().sum().backward())
        plain(y, key, key)[0].square().sum().backward()
        assert relative(x.grad, y.grad) < (1e-5 if exact else 0.05)
