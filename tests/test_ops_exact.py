"""torch.ops.phiquant on exact weights: schemas, fakes, results, gradients and corrupt planes.

`test_ops.py` runs this file, too, in an interpreter that has only the reference kernels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.nn import functional

from phiquant import ops
from tests.support import DTYPES, same_bits, weight, with_specials

phi = torch.ops.phiquant
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
FORMATS = [(4, 4, 64, "phi"), (2, 2, 32, "phi"), (6, 8, 128, "phi"), (5, 8, 64, "golden")]
EVERY_FORMAT = pytest.mark.parametrize("form", FORMATS, ids=str)
BLOCK = 512


def exact(of: Tensor, *form: Any, fit: str = "joint") -> tuple[list[Any], tuple[Any, ...]]:
    """All planes and the layout of an exact weight, as decode, linear and embedding take them."""
    bits = (*(form or FORMATS[0]), -10, of.dtype)
    lossy = [p if p.shape[-1] else None for p in phi.encode(of, None, *bits, fit)]
    return [*lossy, *phi.encode_remainder(of, *lossy, *bits)], (of.shape[-1], *bits)


@EVERY_DTYPE
@pytest.mark.parametrize("deviation_bits", [2, 4, 8])
def test_opcheck(dtype: torch.dtype, deviation_bits: int) -> None:
    hard, of = (make(weight(6, 96, dtype=dtype)) for make in (with_specials, torch.clone))
    planes, layout = exact(hard, 4, deviation_bits, 64, "phi")
    opcheck(phi.encode.default, (hard, None, *layout[1:], "exact"))
    opcheck(phi.encode_remainder.default, (hard, *planes[:4], *layout[1:]))
    planes, layout = exact(of, 4, deviation_bits, 64, "phi")  # opcheck takes no NaN for equal
    opcheck(phi.decode.default, (*planes, *layout, dtype))
    opcheck(phi.embedding.default, (torch.tensor([[5, 0, 3]]), *planes, *layout, dtype))
    x = torch.randn(3, 96, dtype=dtype, requires_grad=True)
    opcheck(phi.linear.default, (x, *planes, None, *layout))


@EVERY_FORMAT
@EVERY_DTYPE
def test_kernels_agree_with_the_reference(dtype: torch.dtype, form: Any) -> None:
    of = with_specials(weight(20, 600, dtype=dtype))
    planes, layout = exact(of, *form)
    for ours, theirs in zip(
        planes[4:], ops._encode_remainder(of, *planes[:4], *layout[1:]), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert same_bits(phi.decode(*planes, *layout, dtype), of)
    for read in DTYPES:
        decoded = phi.decode(*planes, *layout, read)
        assert same_bits(decoded, ops._decode(*planes, *layout, read))
    indices = torch.tensor([[19, 0], [7, 0]])
    assert same_bits(phi.embedding(indices, *planes, *layout, dtype), of[indices])


@EVERY_FORMAT
@EVERY_DTYPE
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_a_product_is_that_with_the_original(dtype: torch.dtype, form: Any, rows: int) -> None:
    of = weight(20, 600, dtype=dtype)
    planes, layout = exact(of, *form)
    x, bias = torch.randn(rows, 600, dtype=dtype), torch.randn(20, dtype=dtype)
    product = phi.linear(x, *planes, bias, *layout)
    exactly = functional.linear(x.double(), of.double(), bias.double())
    scale = x.double().abs() @ of.double().abs().t() + bias.double().abs()
    assert product.dtype == dtype
    roundings = 8 if dtype == torch.float32 else 1  # of the sums, which are fp32
    assert ((product - exactly).abs() <= scale * torch.finfo(dtype).eps * roundings).all()


def test_products_see_infinities_and_nan() -> None:
    of = weight(5, 70)
    of[1, 3], of[4, 69] = torch.inf, torch.nan
    planes, layout = exact(of)
    for rows in (1, 40):
        product = phi.linear(torch.ones(rows, 70), *planes, None, *layout)
        assert product[:, 1].isinf().all()
        assert product[:, 4].isnan().all()
        assert product[:, [0, 2, 3]].isfinite().all()


def test_gradients_are_those_of_the_original() -> None:
    of = weight(7, 128)
    planes, layout = exact(of)
    x, bias = torch.randn(2, 3, 128), torch.randn(7)
    upstream = torch.randn(2, 3, 7)
    ours, theirs = ((x.clone().requires_grad_(), bias.clone().requires_grad_()) for _ in range(2))
    phi.linear(ours[0], *planes, ours[1], *layout).backward(upstream)
    functional.linear(theirs[0], of, theirs[1]).backward(upstream)
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad)


@pytest.mark.parametrize("shape", [(3, 100), (2, 3, 700), (0, 70), (40, 512)], ids=str)
def test_fakes_tell_shapes_and_dtypes(shape: tuple[int, ...]) -> None:
    of = weight(*shape, dtype=torch.float16)
    planes, layout = exact(of)
    with FakeTensorMode(shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv()) as mode:
        fake = [None if p is None else mode.from_tensor(p) for p in planes]
        made = phi.encode_remainder(mode.from_tensor(of), *fake[:4], *layout[1:])
        decoded = phi.decode(*fake, *layout, torch.float32)
    assert [part.dtype for part in made] == [part.dtype for part in planes[4:]]
    assert [part.dim() for part in made] == [part.dim() for part in planes[4:]]
    assert (made[1].shape, made[2].shape) == (planes[5].shape, planes[6].shape)
    assert (decoded.shape, decoded.dtype) == (of.shape, torch.float32)


class TestBadInput:
    @pytest.fixture(autouse=True)
    def planes(self) -> None:
        self.of = weight(9, 1100, dtype=torch.bfloat16)
        self.planes, self.layout = exact(self.of)
        self.x = torch.randn(2, 1100)

    def refused(self, planes: list[Any], message: str, *, row: int | None = None) -> None:
        """By every reader; an embedding looks at the rows that it is asked for."""
        with pytest.raises(ValueError, match=message):
            phi.decode(*planes, *self.layout, torch.bfloat16)
        for rows in (1, 40):
            x = torch.randn(rows, 1100, dtype=torch.bfloat16)
            with pytest.raises(ValueError, match=message):
                phi.linear(x, *planes, None, *self.layout)
        if row is not None:
            other = torch.tensor([0])
            found = phi.embedding(other, *planes, *self.layout, torch.bfloat16)
            assert same_bits(found, self.of[other])
            with pytest.raises(ValueError, match="remainder: block"):
                phi.embedding(torch.tensor([row]), *planes, *self.layout, torch.bfloat16)

    def test_a_remainder_that_is_not_in_its_sub_cell(self) -> None:
        payload = self.planes[4].clone()
        begin = int(self.planes[6][0]) + (int(self.planes[5][7, 0]) & 0xFFFF)
        payload[begin : begin + 100] = 0xFF
        planes = [*self.planes[:4], payload, *self.planes[5:]]
        self.refused(planes, "remainder: block 21 ", row=7)

    @pytest.mark.parametrize("step", [1, -1, 3000])
    def test_an_offset(self, step: int) -> None:
        offsets = self.planes[5].clone()
        offsets[4, 1] += step
        self.refused([*self.planes[:5], offsets, *self.planes[6:]], r"remainder: block 1[23] ")

    @pytest.mark.parametrize("value", [1, -1, 1 << 40, (1 << 63) - 1, -(1 << 63)])
    def test_a_start(self, value: int) -> None:
        starts = self.planes[6] + 0
        starts[0] = value
        self.refused([*self.planes[:6], starts, self.planes[7]], r"remainder: block \d+ ")

    @pytest.mark.parametrize("missing", [1, 50])
    def test_a_truncated_payload(self, missing: int) -> None:
        cut = [*self.planes[:4], self.planes[4][:-missing], *self.planes[5:]]
        self.refused(cut, r"remainder: block 2[0-6] ")

    @pytest.mark.parametrize(("place", "name"), [(4, "remainder"), (5, "offsets"), (6, "starts")])
    def test_planes_that_are_missing_or_of_another_dtype(self, place: int, name: str) -> None:
        for change in (None, self.planes[place].to(torch.int32), self.planes[place][..., :0]):
            planes = [*self.planes[:place], change, *self.planes[place + 1 :]]
            with pytest.raises(ValueError, match=f"{name}: (missing|expected)"):
                phi.decode(*planes, *self.layout, torch.bfloat16)

    def test_a_remainder_that_is_not_read(self) -> None:
        lossy = (*self.layout[:-1], None)
        with pytest.raises(ValueError, match="remainder: the layout has no such plane"):
            phi.decode(*self.planes, *lossy, torch.bfloat16)

    @pytest.mark.parametrize(
        "bad", [[[-1, 0]], [[5, 0], [4, 0]], [[5, -1]], [[5, 1 << 32]]], ids=str
    )
    def test_exceptions(self, bad: list[list[int]]) -> None:
        planes = [*self.planes[:7], torch.tensor(bad)]
        with pytest.raises(ValueError, match="exceptions: expected ascending places"):
            phi.decode(*planes, *self.layout, torch.bfloat16)

    def test_the_weight_of_a_remainder(self) -> None:
        for of in (self.of.float(), self.of.half()):
            with pytest.raises(ValueError, match=r"weight: expected torch\.bfloat16, as stored"):
                phi.encode_remainder(of, *self.planes[:4], *self.layout[1:])
        with pytest.raises(ValueError, match=r"expected torch\.u?int\d+ of shape"):
            phi.encode_remainder(self.of[:, :512], *self.planes[:4], *self.layout[1:])

    def test_layouts(self) -> None:
        bits = self.layout[1:]
        with pytest.raises(ValueError, match=r"deviation_bits must be 2, 4 or 8"):
            phi.encode(self.of, None, bits[0], 0, *bits[2:], "joint")
        with pytest.raises(ValueError, match="stored_dtype"):
            phi.decode(*self.planes, *self.layout[:-1], torch.float64, torch.bfloat16)
        with pytest.raises(ValueError, match="fit='exact' minimises the remainder"):
            phi.encode(self.of, None, *bits[:-1], None, "exact")
