"""torch.ops.phiquant: schemas, fakes, autograd, bad input; with and without the compiled kernels.

`test_without_the_compiled_library` runs this file and test_ops_exact.py again in an interpreter
that has only the reference kernels.
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
from tests.support import DTYPES, HIDE_LIBRARY, relative, run_python, weight

phi = torch.ops.phiquant
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
EVERY_DEPTH = pytest.mark.parametrize("deviation_bits", [0, 2, 4, 8])
LAYOUTS = [
    (4, 4, 64, "phi", -10),
    (2, 0, 32, "phi", -10),
    (3, 2, 128, "phi", -9),
    (5, 8, 64, "golden", -10),
    (6, 8, 32, "golden", -10),
    (6, 4, 64, "phi", -10),
]


def arguments(of: Tensor, *bits: Any) -> tuple[Any, ...]:
    """Planes and layout of an encoded weight, as decode, linear and embedding take them."""
    index, deviation, low, scale = phi.encode(of, None, *bits, None, "joint")
    high = deviation if bits[1] else None
    lossy = (index, high, low if bits[1] == 8 else None, scale)
    return (*lossy, *(None,) * 4), (of.shape[-1], *bits, None)


def linear(x: Tensor, planes: Any, bias: Tensor | None, layout: Any) -> Tensor:
    return phi.linear(x, *planes, bias, *layout)


@EVERY_DEPTH
@EVERY_DTYPE
def test_opcheck(dtype: torch.dtype, deviation_bits: int) -> None:
    bits = (4, deviation_bits, 64, "phi", -10)
    of = weight(6, 96, dtype=dtype)
    planes, layout = arguments(of, *bits)
    opcheck(phi.encode.default, (of, None, *bits, None, "joint"))
    opcheck(phi.encode.default, (of, torch.rand(96), *bits, None, "index"))
    opcheck(phi.decode.default, (*planes, *layout, dtype))
    opcheck(phi.embedding.default, (torch.tensor([[5, 0, 3]]), *planes, *layout, dtype))
    x = torch.randn(3, 96, dtype=dtype, requires_grad=True)
    opcheck(phi.linear.default, (x, *planes, None, *layout))
    bias = torch.randn(6, dtype=dtype, requires_grad=True)
    opcheck(phi.linear.default, (x.detach(), *planes, bias, *layout))


@pytest.mark.parametrize("bits", LAYOUTS, ids=str)
def test_fakes_tell_shapes_dtypes_and_strides(bits: tuple[Any, ...]) -> None:
    of = weight(3, 4, 100)
    real = phi.encode(of, None, *bits, None, "joint")
    planes, layout = arguments(of, *bits)
    matrix = tuple(None if plane is None else plane[0] for plane in planes)
    x, indices = torch.randn(2, 5, 100), torch.tensor([[0, 3]])
    calls = [
        (lambda x, i, w, p: phi.encode(w, None, *bits, None, "joint"), real),
        (lambda x, i, w, p: phi.decode(*p, *layout, torch.float16), None),
        (lambda x, i, w, p: phi.linear(x, *p, None, *layout), None),
        (lambda x, i, w, p: phi.embedding(i, *p, *layout, torch.bfloat16), None),
    ]
    for call, _ in calls:
        expected = call(x, indices, of, matrix)
        with FakeTensorMode() as mode:
            fake = [None if p is None else mode.from_tensor(p) for p in matrix]
            got = call(*(mode.from_tensor(t) for t in (x, indices, of)), fake)
        expected, got = (t if isinstance(t, tuple | list) else [t] for t in (expected, got))
        for a, b in zip(expected, got, strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("bits", LAYOUTS, ids=str)
@EVERY_DTYPE
def test_dispatched_kernels_agree_with_the_reference(dtype: torch.dtype, bits: Any) -> None:
    of = weight(20, 200, dtype=dtype)
    planes, layout = arguments(of, *bits)
    decoded = phi.decode(*planes, *layout, dtype)
    assert torch.equal(decoded, ops._decode(*planes, *layout, dtype))
    assert relative(decoded, of) < (0.5 if bits[1] == 0 else 0.15)
    indices = torch.tensor([19, 0, 7])
    rows = phi.embedding(indices, *planes, *layout, dtype)
    assert torch.equal(rows, decoded[indices])
    assert torch.equal(rows, ops._embedding(indices, *planes, *layout, dtype))
    x, bias = torch.randn(3, 200, dtype=dtype), torch.randn(20, dtype=dtype)
    exact = functional.linear(x.double(), phi.decode(*planes, *layout, torch.float32).double())
    exact += bias.double()
    for result in (linear(x, planes, bias, layout), ops._linear(x, *planes, bias, *layout)):
        assert result.dtype == dtype
        assert relative(result, exact) < {torch.float32: 1e-6}.get(dtype, 2e-2)


@EVERY_DEPTH
def test_gradients_are_those_of_the_decoded_weight(deviation_bits: int) -> None:
    planes, layout = arguments(weight(7, 128), 4, deviation_bits, 64, "phi", -10)
    dense = phi.decode(*planes, *layout, torch.float32)
    x, bias = torch.randn(2, 3, 128), torch.randn(7)
    upstream = torch.randn(2, 3, 7)
    ours, theirs = ((x.clone().requires_grad_(), bias.clone().requires_grad_()) for _ in range(2))
    linear(ours[0], planes, ours[1], layout).backward(upstream)
    functional.linear(theirs[0], dense, theirs[1]).backward(upstream)
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad)


def test_second_gradients() -> None:
    planes, layout = arguments(weight(7, 64), 4, 4, 64, "phi", -10)
    dense = phi.decode(*planes, *layout, torch.float32)
    grads = []
    for product in (
        lambda x: linear(x, planes, None, layout),
        lambda x: functional.linear(x, dense),
    ):
        x = torch.ones(2, 64, requires_grad=True)
        (first,) = torch.autograd.grad(product(x).pow(3).sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*grads)


def test_gradcheck_in_double() -> None:
    planes, layout = arguments(weight(3, 40), 4, 4, 32, "phi", -10)
    dense = phi.decode(*planes, *layout, torch.float64)
    assert torch.equal(dense, phi.decode(*planes, *layout, torch.float32).double())
    x = torch.randn(2, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: linear(x, planes, None, layout), x)


@pytest.mark.parametrize("shape", [(128,), (0, 128), (1, 128), (40, 128), (2, 3, 128), (2, 0, 128)])
def test_inputs_of_every_rank(shape: tuple[int, ...]) -> None:
    planes, layout = arguments(weight(7, 128), 4, 4, 64, "phi", -10)
    dense = phi.decode(*planes, *layout, torch.float32)
    x = torch.randn(shape, requires_grad=True)
    bias = torch.randn(7, requires_grad=True)
    result = linear(x, planes, bias, layout)
    torch.testing.assert_close(result, functional.linear(x, dense, bias))
    result.sum().backward()
    torch.testing.assert_close(x.grad, dense.sum(0).expand(shape))
    torch.testing.assert_close(bias.grad, torch.full((7,), float(x.numel() // 128)))


def test_inputs_that_are_not_contiguous() -> None:
    planes, layout = arguments(weight(7, 128), 4, 4, 64, "phi", -10)
    dense = phi.decode(*planes, *layout, torch.float32)
    wide = torch.randn(128, 5, 2)
    for x in (wide[..., 0].t(), wide[:, :1, 0].t().expand(5, 128), wide.permute(1, 2, 0)):
        torch.testing.assert_close(linear(x, planes, None, layout), functional.linear(x, dense))
    strided = tuple(torch.stack([p, p])[0] if p is not None else None for p in planes)
    every_other = tuple(torch.stack([p, p], 1)[:, 0] if p is not None else None for p in planes)
    x = torch.randn(3, 128)
    for cut in (strided, every_other):
        assert torch.equal(linear(x, cut, None, layout), linear(x, planes, None, layout))
        assert torch.equal(phi.decode(*cut, *layout, torch.float32), dense)


def test_rows_of_x_may_be_dynamic() -> None:
    planes, layout = arguments(weight(7, 128), 4, 4, 64, "phi", -10)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda x: linear(x, planes, None, layout), backend=backend, dynamic=True
    )
    for rows in (5, 3, 17):
        x = torch.randn(rows, 128)
        assert torch.equal(compiled(x), linear(x, planes, None, layout))
    assert len(graphs) == 1


def test_an_empty_set_of_indices() -> None:
    planes, layout = arguments(weight(7, 128), 4, 8, 64, "phi", -10)
    empty = torch.empty(2, 0, dtype=torch.long)
    assert phi.embedding(empty, *planes, *layout, torch.float16).shape == (2, 0, 128)


class TestBadInput:
    bits = (4, 4, 64, "phi", -10)

    @pytest.fixture(autouse=True)
    def planes(self) -> None:
        self.planes, self.layout = arguments(weight(7, 128), *self.bits)
        self.x = torch.randn(3, 128)

    @pytest.mark.parametrize(
        ("place", "name"), [(0, "index"), (1, "deviation"), (2, "low"), (3, "scale")]
    )
    def test_planes_that_do_not_fit(self, place: int, name: str) -> None:
        deep, layout = arguments(weight(7, 128), 4, 8, 64, "phi", -10)
        wrong = [
            lambda p: p[:, :-1],  # too short
            lambda p: p[:-1],  # other rows
            lambda p: p.to(torch.int32),
        ]
        for change in wrong:
            cut = [change(p) if i == place else p for i, p in enumerate(deep)]
            # the number of rows is read from one plane, so the other may be the one blamed
            with pytest.raises(ValueError, match=r"expected torch\.u?int\d+ of shape"):
                phi.decode(*cut, *layout, torch.float32)
            with pytest.raises(ValueError, match=r"expected torch\.u?int\d+ of shape"):
                linear(self.x, cut, None, layout)

    def test_a_plane_too_many_or_too_few(self) -> None:
        index, deviation, _, scale, *rest = self.planes
        with pytest.raises(ValueError, match="deviation: missing"):
            phi.decode(index, None, None, scale, *rest, *self.layout, torch.float32)
        with pytest.raises(ValueError, match="deviation_low: the layout has no such plane"):
            phi.decode(index, deviation, deviation, scale, *rest, *self.layout, torch.float32)

    @pytest.mark.parametrize("word", [0x0000, 0x03F8, 0x7C00, 0x7E01], ids=hex)
    def test_scale_words_that_are_no_normal_numbers(self, word: int) -> None:
        scale = self.planes[3].clone()
        scale[3, 1] = word
        cut = (*self.planes[:3], scale, *self.planes[4:])
        with pytest.raises(ValueError, match="not a normal fp16 number"):
            phi.decode(*cut, *self.layout, torch.float32)
        with pytest.raises(ValueError, match="not a normal fp16 number"):
            linear(self.x, cut, None, self.layout)
        with pytest.raises(ValueError, match="not a normal fp16 number"):
            linear(torch.randn(40, 128), cut, None, self.layout)
        with pytest.raises(ValueError, match="not a normal fp16 number"):
            phi.embedding(torch.tensor([3]), *cut, *self.layout, torch.float32)

    @pytest.mark.parametrize(
        ("place", "value", "name"),
        [
            (0, 7, "index_bits"),
            (1, 3, "deviation_bits"),
            (2, 48, "group_size"),
            (3, "gold", "grid"),
            (4, 200, "exponent"),
        ],
    )
    def test_layout_numbers_out_of_range(self, place: int, value: object, name: str) -> None:
        bits = [*self.bits[:place], value, *self.bits[place + 1 :]]
        with pytest.raises(ValueError, match=name):
            phi.encode(weight(7, 128), None, *bits, None, "joint")
        with pytest.raises(ValueError, match=name):
            phi.decode(*self.planes, 128, *bits, None, torch.float32)
        with pytest.raises(ValueError, match=name):
            linear(self.x, self.planes, None, (128, *bits, None))

    def test_encode_arguments(self) -> None:
        with pytest.raises(ValueError, match="dtype: expected bfloat16"):
            phi.decode(*self.planes, *self.layout, torch.int8)
        with pytest.raises(ValueError, match="fit"):
            phi.encode(weight(7, 128), None, *self.bits, None, "best")
        with pytest.raises(ValueError, match=r"weight: .*float64"):
            phi.encode(weight(7, 128).double(), None, *self.bits, None, "joint")
        with pytest.raises(ValueError, match=r"importance: .*\(128,\)"):
            phi.encode(weight(7, 128), torch.ones(64), *self.bits, None, "joint")

    def test_linear_arguments(self) -> None:
        with pytest.raises(ValueError, match=r"x: expected a last dimension of 128"):
            linear(torch.randn(3, 64), self.planes, None, self.layout)
        with pytest.raises(ValueError, match=r"bias: expected torch.float32 of shape \(7,\)"):
            linear(self.x, self.planes, torch.randn(6), self.layout)
        with pytest.raises(ValueError, match=r"bias: expected torch.float32 of shape \(7,\)"):
            linear(self.x, self.planes, torch.randn(7).double(), self.layout)
        for rows in (3, 40):
            with pytest.raises(ValueError, match=r"x: expected bfloat16, .*int64"):
                linear(torch.ones(rows, 128).long(), self.planes, None, self.layout)

    def test_indices(self) -> None:
        for bad in (7, -1):
            with pytest.raises(IndexError, match="out of range"):
                phi.embedding(torch.tensor([0, bad]), *self.planes, *self.layout, torch.float32)
        with pytest.raises((ValueError, RuntimeError), match="indices"):
            phi.embedding(torch.tensor([0.5]), *self.planes, *self.layout, torch.float32)

    def test_the_fake_checks_what_the_kernel_checks(self) -> None:
        meta = tuple(None if p is None else p.to("meta") for p in self.planes)
        with pytest.raises(ValueError, match="x: expected a last dimension of 128"):
            linear(torch.randn(3, 64, device="meta"), meta, None, self.layout)
        with pytest.raises(ValueError, match=r"x: expected bfloat16, .*int64"):
            linear(torch.ones(3, 128, device="meta").long(), meta, None, self.layout)
        with pytest.raises(ValueError, match="x: is on cpu, but the weight is on meta"):
            linear(self.x, meta, None, self.layout)
        with pytest.raises(ValueError, match="indices: is on cpu, but the weight is on meta"):
            phi.embedding(torch.tensor([1]), *meta, *self.layout, torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(not ops.compiled, reason="it is this interpreter's own state already")
def test_without_the_compiled_library() -> None:
    code = HIDE_LIBRARY + (
        "import pytest, phiquant.ops\n"
        "assert not phiquant.ops.compiled\n"
        "files = ['tests/test_ops.py', 'tests/test_ops_exact.py']\n"
        "raise SystemExit(pytest.main(['-q', '-x', *files]))\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert " passed" in result.stdout
