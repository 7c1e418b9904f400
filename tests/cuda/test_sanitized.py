"""Every kernel once, small: what `make sanitize-cuda` also runs where checking takes long."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from phiquant import codec
from phiquant.codec import Layout
from tests.cuda import test_encode, test_experts, test_remainder
from tests.cuda.support import ON_A_GPU, compiled_exact, on_gpu, phi, same, settings, typical_planes
from tests.cuda.test_linear import TOLERANCE, error, linear, sums_in_fp32
from tests.cuda.test_linears import linears
from tests.support import weight

pytestmark = ON_A_GPU
__all__ = ["sums_in_fp32"]  # used by every test
SOURCES = Path(__file__).parents[2] / "csrc/cuda"
HALF, BRAIN = torch.float16, torch.bfloat16


def multiply(rows: int, deviation: int, shape: tuple[int, int], dtype: torch.dtype = BRAIN) -> None:
    layout = Layout(shape[1], 4, deviation, exponent=0)
    planes = typical_planes(layout, shape[0])
    x = torch.randn(rows, shape[1], dtype=dtype, device="cuda") * 0.1
    bias = torch.randn(shape[0], dtype=dtype, device="cuda")
    actual = linear(x, on_gpu(planes), bias, layout)
    assert error(x, codec.decode(planes, layout), actual, bias) <= TOLERANCE[dtype]


def multiply_together(m: int, deviation: int, columns: int, rows: tuple[int, ...]) -> None:
    layout = Layout(columns, 4, deviation, exponent=0)
    planes = [typical_planes(layout, count) for count in rows]
    x = torch.randn(m, columns, dtype=BRAIN, device="cuda") * 0.1
    biases = [torch.randn(count, dtype=BRAIN, device="cuda") for count in rows]
    products = linears(x, [on_gpu(each) for each in planes], biases, layout)
    for of, bias, actual in zip(planes, biases, products, strict=True):
        assert error(x, codec.decode(of, layout), actual, bias) <= TOLERANCE[BRAIN]


def multiply_exact(rows: int, columns: int, dtype: torch.dtype) -> None:
    layout = Layout(columns, exponent=-10, stored_dtype=dtype)
    of = weight(67, columns, dtype=dtype)
    x = torch.randn(rows, columns, dtype=dtype, device="cuda")
    actual = linear(x, on_gpu(compiled_exact(of, layout)), None, layout)
    assert error(x, of.float(), actual) <= TOLERANCE[dtype]


def multiply_exact_together(m: int, columns: int, rows: tuple[int, ...]) -> None:
    layout = Layout(columns, exponent=-10, stored_dtype=BRAIN)
    weights = [weight(count, columns, dtype=BRAIN) for count in rows]
    x = torch.randn(m, columns, dtype=BRAIN, device="cuda")
    products = linears(x, [on_gpu(compiled_exact(of, layout)) for of in weights], [], layout)
    for of, actual in zip(weights, products, strict=True):
        assert error(x, of.float(), actual) <= TOLERANCE[BRAIN]


def decode(layout: Layout, dtype: torch.dtype, rows: int = 5) -> None:
    planes = typical_planes(layout, rows)
    there, given = on_gpu(planes), (layout.columns, *settings(layout), dtype)
    assert same(phi.decode(*there, *given), codec.decode(planes, layout, dtype))
    asked = torch.tensor([3, 1, 3], device="cuda")
    wanted = codec.decode(planes, layout, dtype)[[3, 1, 3]]
    assert same(phi.embedding(asked, *there, *given), wanted)


def encode(layout: Layout, dtype: torch.dtype) -> None:
    of = torch.randn(13, layout.columns).to(dtype)
    assert test_encode.same_planes(of, layout)
    assert test_encode.same_planes(of, layout, "index", torch.rand(layout.columns) + 0.5)


def encode_exact(rows: int, columns: int, dtype: torch.dtype) -> None:
    of = weight(rows, columns, dtype=dtype)
    of[-1, 0] = torch.inf  # an exception
    test_remainder.check(of, Layout(columns, exponent=-10, stored_dtype=dtype))


def experts(deviation: int, columns: int) -> None:
    layout = Layout(columns, 4, deviation, exponent=0)
    planes, ends = test_experts.experts_of(layout), [0, 3, 3, 4, 7]
    x = torch.randn(7, columns, dtype=BRAIN, device="cuda")
    actual = test_experts.grouped(x, planes, ends, layout)
    assert test_experts.is_close(actual, x, codec.decode(planes, layout), ends)


DEVIATIONS = (0, 2, 4, 8)
# Whole tiles and ragged ones, an even and an odd number of groups; blocks that share a tile.
FEW, MANY = ((320, 1024), (301, 1032)), ((7001, 1032), (14001, 488), (4001, 2048))
ODD = Layout(200, 3, 2, 32, "golden", 0)
CASES: list[Callable[[], None]] = [
    *(
        partial(multiply, m, bits, shape)
        for m in (1, 2, 4, 8)
        for bits in DEVIATIONS
        for shape in FEW
    ),
    *(partial(multiply, m, bits, (700, 776)) for m in (5, 16) for bits in (0, 4)),
    *(partial(multiply, m, bits, shape) for m in (9, 24, 33) for bits in (0, 4) for shape in FEW),
    *(
        partial(multiply, m, bits, s)
        for m, s in zip((130, 100, 64), MANY, strict=True)
        for bits in (0, 4)
    ),
    *(partial(multiply, m, 4, (301, 1032), HALF) for m in (1, 8, 24)),
    *(
        partial(multiply_together, m, bits, columns, (301, 17, 64))
        for m, deviations in ((1, DEVIATIONS), (2, DEVIATIONS), (8, DEVIATIONS), (16, (0, 2, 4)))
        for bits in deviations
        for columns in (1024, 1032)
    ),
    *(partial(multiply_exact, m, columns, BRAIN) for m in (1, 8, 16) for columns in (1024, 1100)),
    *(partial(multiply_exact, m, 1100, HALF) for m in (1, 8)),
    *(
        partial(multiply_exact_together, m, columns, (67, 17, 64))
        for m in (1, 8, 16)
        for columns in (1024, 1100)
    ),
    *(
        partial(decode, Layout(256, 4, bits), dtype)
        for bits, dtype in product(DEVIATIONS, TOLERANCE)
    ),
    *(partial(decode, ODD, dtype, 7) for dtype in TOLERANCE),
    *(partial(encode, Layout(200, 4, bits, exponent=-4), BRAIN) for bits in DEVIATIONS),
    *(partial(encode, replace(ODD, exponent=-4), dtype) for dtype in TOLERANCE),
    *(partial(encode_exact, rows, 1100, dtype) for rows in (5, 67) for dtype in TOLERANCE),
    *(partial(experts, bits, columns) for bits in DEVIATIONS for columns in (328, 1024)),
]


def named(case: Callable[[], None]) -> str:
    assert isinstance(case, partial)
    return "-".join(str(part) for part in (case.func.__name__, *case.args))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_case(case: Callable[[], None]) -> None:
    case()


def kernels() -> set[str]:
    """Those that are defined in the sources."""
    bounds = re.compile(r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)")
    found: set[str] = set()
    for path in SOURCES.glob("*.cu*"):
        text = bounds.sub("", path.read_text(encoding="utf-8"))
        found |= set(re.findall(r"__global__\s+void\s+(\w+)\(", text))
    return found


def test_every_kernel_is_among_them() -> None:
    if not SOURCES.is_dir():
        pytest.skip("the sources of the kernels are not beside the tests")
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as trace:
        for case in CASES:
            case()
        torch.cuda.synchronize()
    ran = {event.name for event in trace.events() if event.device_type == DeviceType.CUDA}
    missed = {
        name
        for name in kernels()
        if not any(re.search(rf"phiquant::cuda::.*\b{name}\b", each) for each in ran)
    }
    assert kernels()
    assert not missed
