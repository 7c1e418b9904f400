"""Products with compressed experts: batches, groups of tokens, transformers' three ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from phiquant import PhiConfig, PhiTensor
from tests.aten.support import silently
from tests.support import weight


@pytest.fixture(params=["lossy", "exact"])
def experts(request: pytest.FixtureRequest) -> PhiTensor:
    """``[experts, out, in]``, as most mixtures keep them."""
    return PhiTensor.from_hp(weight(4, 32, 600), PhiConfig(exact=request.param == "exact"))


@pytest.fixture
def kept_transposed(experts: PhiTensor) -> PhiTensor:
    """``[experts, in, out]``, stored the other way round."""
    config = PhiConfig(exact=experts.is_exact)
    return PhiTensor.from_hp(weight(4, 600, 32), config, transposed=True)


def ends(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


X = torch.randn(8, 600, generator=torch.Generator().manual_seed(0))
BATCH = torch.randn(4, 5, 600, generator=torch.Generator().manual_seed(1))

PRODUCTS: dict[str, Callable[[Any], Tensor]] = {
    "bmm": lambda w: torch.bmm(BATCH, w.transpose(1, 2)),
    "method": lambda w: BATCH.bmm(w.mT),
    "matmul": lambda w: BATCH @ w.transpose(-2, -1),
    "from the left": lambda w: torch.bmm(w, BATCH.mT),
    "left matmul": lambda w: w @ BATCH.mT,
    "baddbmm": lambda w: torch.baddbmm(torch.ones(4, 1, 32), BATCH, w.mT),
    "rows": lambda w: torch.bmm(BATCH[:, :, :32], w),
    "one": lambda w: functional.linear(BATCH[0], w[2]),
    "one by a tensor": lambda w: BATCH[0] @ w[torch.tensor(2)].T,
    "some": lambda w: torch.bmm(BATCH[1:3], w[1:3].mT),
    "selected": lambda w: torch.bmm(w[torch.tensor([3, 0, 3])], BATCH[:3].mT),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=list(PRODUCTS))
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_they_run_on_the_planes(
    experts: PhiTensor, product: Callable[[Any], Tensor], mode: Callable[[], Any]
) -> None:
    with mode():
        ours = silently(lambda: product(experts))
        torch.testing.assert_close(ours, product(experts.dequantize()))


@pytest.mark.parametrize("product", [torch.bmm, torch.matmul, lambda x, w: x.matmul(w)])
def test_experts_that_are_kept_transposed(
    kept_transposed: PhiTensor, product: Callable[[Tensor, Any], Tensor]
) -> None:
    assert kept_transposed.shape == (4, 600, 32)
    assert kept_transposed.scale_plane.shape == (4, 32, 10)
    dense = kept_transposed.dequantize()
    ours = silently(lambda: product(BATCH, kept_transposed))
    torch.testing.assert_close(ours, product(BATCH, dense))
    one = silently(lambda: BATCH[1] @ kept_transposed[1])
    torch.testing.assert_close(one, BATCH[1] @ dense[1])
    numbers = torch.tensor([2, 2, 1])
    assert torch.equal(silently(lambda: kept_transposed[numbers]), dense[numbers])


@pytest.mark.parametrize("grouped", [functional.grouped_mm, torch._grouped_mm])
@pytest.mark.parametrize("groups", [(2, 4, 6, 8), (0, 5, 5, 8), (0, 0, 0, 0)], ids=str)
def test_tokens_in_groups(
    experts: PhiTensor, grouped: Callable[..., Tensor], groups: tuple[int, ...]
) -> None:
    ours = silently(lambda: grouped(X, experts.transpose(-2, -1), offs=ends(*groups)))
    dense = experts.dequantize().mT
    for expert, (start, stop) in enumerate(zip((0, *groups), groups, strict=False)):
        torch.testing.assert_close(ours[start:stop], X[start:stop] @ dense[expert])


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: torch.bmm(x.view(4, 2, 600), w.mT).view(8, -1),
        lambda x, w: x.view(4, 2, 600) @ w.mT,
        lambda x, w: functional.grouped_mm(x, w.transpose(-2, -1), offs=ends(1, 1, 6, 8)),
        lambda x, w: torch.bmm(x[:, :32].reshape(4, 2, 32), w),
    ],
    ids=["bmm", "matmul", "grouped", "rows"],
)
def test_gradients_of_the_input(
    experts: PhiTensor, product: Callable[[Tensor, Any], Tensor]
) -> None:
    x, y = (X.clone().requires_grad_() for _ in range(2))
    silently(lambda: product(x, experts).square().sum().backward())
    product(y, experts.dequantize().contiguous()).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_autocast(experts: PhiTensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = silently(lambda: torch.bmm(BATCH, experts.mT))
        theirs = torch.bmm(BATCH, experts.dequantize().mT)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


def test_a_selection_reads_no_other_expert(experts: PhiTensor) -> None:
    dense = experts.dequantize()
    experts.scale_plane[1] = 0  # no normal fp16 number: an error where it is read
    numbers = torch.tensor([[3, -4], [2, 3]])
    assert torch.equal(silently(lambda: experts[numbers]), dense[numbers])
    mask = torch.tensor([True, False, True, True])
    assert torch.equal(silently(lambda: experts[mask]), dense[mask])
    picked = silently(lambda: experts.index_select(0, torch.tensor([2])))
    assert torch.equal(picked, dense[2:3])


@pytest.mark.parametrize("numbers", [[4], [-5]], ids=str)
def test_an_expert_that_is_not_there(experts: PhiTensor, numbers: list[int]) -> None:
    with pytest.raises(IndexError, match="index out of range: there are 4 experts"):
        experts[torch.tensor(numbers)]


@pytest.mark.filterwarnings("ignore:.*has no compressed form")
@pytest.mark.parametrize(
    "call",
    [
        lambda w: torch.bmm(BATCH, w.mT, out=torch.empty(4, 5, 32)),
        lambda w: torch.baddbmm(torch.ones(4, 5, 32), BATCH, w.mT, beta=0.5, alpha=2),
        lambda w: BATCH[0] @ w.mT,
        lambda w: torch.einsum("ebi,eoi->ebo", BATCH, w),
        lambda w: w[torch.tensor([1, 2]), torch.tensor([3, 4])],
        lambda w: w[:, torch.tensor([3, 4])],
    ],
)
def test_others_decode(experts: PhiTensor, call: Callable[[Any], Tensor]) -> None:
    torch.testing.assert_close(call(experts), call(experts.dequantize().contiguous()))


@pytest.mark.filterwarnings("ignore:.*has no compressed form")
def test_tangents(experts: PhiTensor) -> None:
    def derivative(weight: Tensor) -> Any:
        ones = torch.ones_like(BATCH)
        return torch.func.jvp(lambda x: torch.bmm(x, weight.mT), (BATCH,), (ones,))

    torch.testing.assert_close(derivative(experts), derivative(experts.dequantize()))


def test_shapes_that_do_not_fit(experts: PhiTensor) -> None:
    with pytest.warns(UserWarning, match="no compressed form"), pytest.raises(RuntimeError):
        torch.bmm(BATCH[:3], experts.mT)
    with pytest.raises(ValueError, match=r"x: expected shape \(tokens, 600\), got \(8, 64\)"):
        functional.grouped_mm(X[:, :64], experts.mT, offs=ends(1, 2, 3, 8))
