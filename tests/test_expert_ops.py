"""torch.ops.phiquant on many matrices: opcheck, values, gradients, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from phiquant import PhiConfig, PhiTensor
from phiquant import expert_ops as expert_ops
from tests.support import compressed, weight, with_specials

phi = torch.ops.phiquant
GROUPS = {
    "even": [2, 4, 6, 8],
    "some empty": [0, 5, 5, 8],
    "all in one": [0, 0, 8, 8],
    "none": [0, 0, 0, 0],
    "a rest": [1, 2, 4, 5],
}
KINDS: dict[str, dict[str, Any]] = {
    "lossy": {},
    "index only": {"deviation_bits": 0},
    "exact": {"exact": True},
}


def experts(kind: str, dtype: torch.dtype = torch.float32) -> PhiTensor:
    return compressed(4, 6, 600, dtype=dtype, **KINDS[kind])


def exceptional() -> PhiTensor:
    """An exact weight that holds infinities, NaN and what else is no sub-cell's."""
    of = weight(4, 6, 600)
    of[1], of[3] = with_specials(of[1]), with_specials(of[3])
    return PhiTensor.from_hp(of, PhiConfig(exact=True))


def by_hand(x: Tensor, dense: Tensor, ends: list[int]) -> Tensor:
    """Rows of x against the matrix of their group, ``[experts, in, out]``."""
    result = x.new_zeros(x.shape[0], dense.shape[-1])
    for expert, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
        result[start:stop] = x[start:stop] @ dense[expert]
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(kind: str, dtype: torch.dtype) -> None:
    of = experts(kind, dtype)
    ends = torch.tensor([2, 2, 5, 7], dtype=torch.int32)
    arguments = (*of.planes, ends, *of.op_arguments)
    x, y = (torch.randn(8, n, dtype=dtype, requires_grad=True) for n in (600, 6))
    opcheck(phi.grouped_linear.default, (x, *arguments))
    opcheck(phi.grouped_linear_backward.default, (y, *arguments))
    for indices in (torch.tensor([3, 1]), torch.tensor([[2, 2], [0, 2]]), torch.tensor(1)):
        opcheck(phi.gather.default, (indices, *of.planes, *of.op_arguments, dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", GROUPS.values(), ids=list(GROUPS))
def test_products_and_their_gradients(kind: str, ends: list[int]) -> None:
    of = experts(kind)
    x, y = (torch.randn(8, 600) for _ in range(2))
    x.requires_grad_(), y.copy_(x.detach()).requires_grad_()
    ours = phi.grouped_linear(x, *of.planes, torch.tensor(ends), *of.op_arguments)
    theirs = by_hand(y, of.dequantize().transpose(1, 2), ends)
    torch.testing.assert_close(ours, theirs)
    (ours**2).sum().backward(), (theirs**2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(
    "call", [phi.grouped_linear, expert_ops._grouped_linear_cuda], ids=["cpu", "cuda"]
)
def test_without_experts_all_is_zero(call: Callable[..., Tensor]) -> None:
    """A GPU's way there does not ask the device."""
    of = experts("lossy")
    planes = (None if p is None else p[:0] for p in of.planes)
    ends = torch.empty(0, dtype=torch.int32)
    product = call(torch.randn(3, 600), *planes, ends, *of.op_arguments)
    assert torch.equal(product, torch.zeros(3, 6))


def test_each_product_is_the_others_gradient() -> None:
    of = experts("lossy")
    arguments = (*of.planes, torch.tensor([2, 2, 3, 5]), *of.op_arguments)
    for op, columns in ((phi.grouped_linear, 600), (phi.grouped_linear_backward, 6)):
        x = torch.randn(5, columns, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradgradcheck(
            lambda x, op=op: op(x, *arguments) ** 2, x, fast_mode=True, rtol=1e-3
        )


def test_infinities_stay_where_they_are() -> None:
    of = exceptional()
    assert of.exception_plane is not None
    for indices in ([3, 1], [1, 1, 0], [2]):
        found = phi.gather(torch.tensor(indices), *of.planes, *of.op_arguments, torch.float32)
        assert torch.equal(found.view(torch.int32), of.dequantize()[indices].view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("indices", [[3, 0], [2, 2, 1, 2], [[0], [3]], []], ids=str)
def test_gather(kind: str, indices: list[Any]) -> None:
    of, numbers = experts(kind), torch.tensor(indices, dtype=torch.int64)
    found = phi.gather(numbers, *of.planes, *of.op_arguments, torch.float32)
    assert torch.equal(found, of.dequantize()[numbers])


def test_only_what_is_asked_for_is_decoded() -> None:
    """The planes of other experts may hold anything."""
    of = experts("lossy")
    dense = of.dequantize()
    of.scale_plane[0] = 0  # no normal fp16 number: an error where it is read
    x = torch.randn(4, 600)
    with pytest.raises(ValueError, match="not a normal fp16 number"):
        of.dequantize()
    ends = [0, 1, 1, 4]
    ours = phi.grouped_linear(x, *of.planes, torch.tensor(ends), *of.op_arguments)
    torch.testing.assert_close(ours, by_hand(x, dense.transpose(1, 2), ends))
    found = phi.gather(torch.tensor([3, 1, 3]), *of.planes, *of.op_arguments, torch.float32)
    assert torch.equal(found, dense[[3, 1, 3]])


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (torch.tensor([1, 2, 3]), r"ends: expected shape \(4,\), one number an expert"),
        (torch.tensor([1.0, 2, 3, 4]), "ends: expected torch.int32 or torch.int64"),
        (torch.tensor([3, 2, 4, 4]), "ends: expected ascending .* got 2 after 3"),
        (torch.tensor([1, 2, 3, 9]), "ends: .* at most 8, the tokens, got 9 after 3"),
        (torch.tensor([-1, 2, 3, 4]), "ends: expected ascending .* got -1 after 0"),
    ],
)
def test_offsets_that_cannot_be(ends: Tensor, message: str) -> None:
    of = experts("lossy")
    for op, columns in ((phi.grouped_linear, 600), (phi.grouped_linear_backward, 6)):
        with pytest.raises(ValueError, match=message):
            op(torch.randn(8, columns), *of.planes, ends, *of.op_arguments)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_inputs_that_cannot_be(device: str) -> None:
    of = experts("lossy").to(device)
    ends = torch.tensor([1, 2, 3, 4], device=device)

    def refused(x: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            phi.grouped_linear(x.to(device), *of.planes, ends, *of.op_arguments)

    refused(torch.randn(8, 64), r"x: expected shape \(tokens, 600\), got \(8, 64\)")
    refused(torch.randn(2, 8, 600), r"x: expected shape \(tokens, 600\)")
    refused(torch.ones(8, 600).long(), "x: expected bfloat16, float16 or float32")
    matrix = compressed(6, 600).to(device)
    with pytest.raises(ValueError, match=r"weight.scale: expected 3 dimensions, got shape \(6, 10"):
        phi.grouped_linear(
            torch.randn(8, 600, device=device), *matrix.planes, ends, *matrix.op_arguments
        )


@pytest.mark.parametrize("bad", [4, -1])
def test_experts_that_are_not_there(bad: int) -> None:
    of = experts("lossy")
    with pytest.raises(IndexError, match="index out of range: there are 4 experts"):
        phi.gather(torch.tensor([0, bad]), *of.planes, *of.op_arguments, torch.float32)
    with pytest.raises(ValueError, match=r"indices: expected torch.int32 or torch.int64"):
        phi.gather(torch.tensor([0.5]), *of.planes, *of.op_arguments, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, o: phi.grouped_linear(x, *w.planes, o, *w.op_arguments),
        lambda x, w, o: phi.gather(o[:2] % 4, *w.planes, *w.op_arguments, x.dtype) * x[0, 0],
    ],
    ids=["grouped_linear", "gather"],
)
def test_they_compile(call: Callable[..., Tensor]) -> None:
    of, ends = experts("exact"), torch.tensor([1, 3, 3, 8])
    x = torch.randn(8, 600)
    torch._dynamo.reset()
    graph = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(graph(x, of, ends), call(x, of, ends))
