"""encode_remainder on a GPU: the planes of the CPU's kernel, to the bit, exceptions among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from phiquant.codec import Layout, Planes
from phiquant.codec.layout import PADDING
from tests.cuda.support import (
    ON_A_GPU,
    compiled_exact,
    difficult,
    on_gpu,
    phi,
    same,
    settings,
    surrounded,
)
from tests.support import DTYPES
from tests.test_kernels_choice import EVERY_KIND
from tests.test_kernels_exact import EVERY_FORMAT, every_pattern, random_fp32

pytestmark = ON_A_GPU
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NAMES = ("remainder", "offsets", "starts", "exceptions")


def encoded(of: Tensor, lossy: Planes, layout: Layout) -> tuple[Tensor, ...]:
    return phi.encode_remainder(of, *lossy[:4], *settings(layout))


def check(of: Tensor, layout: Layout, fit: str = "joint") -> Planes:
    """Asserts that the planes are the CPU's, and that every bit comes back; returns them."""
    wanted = compiled_exact(of, layout, fit)
    there = on_gpu(wanted)
    found = encoded(of.cuda(), there, layout)
    for name, plane in zip(NAMES, found, strict=True):
        assert plane.is_cuda
        assert torch.equal(plane.cpu(), getattr(wanted, name)), name
    planes = Planes(*there[:4], *found)
    decoded = phi.decode(*planes, layout.columns, *settings(layout), layout.stored_dtype)
    assert same(decoded, of)
    return planes


@EVERY_DTYPE
@EVERY_FORMAT
def test_every_format(grid: str, index: int, deviation: int, size: int, dtype: torch.dtype) -> None:
    of = difficult(dtype)
    for exponent in (-10, -112, 112):
        check(of, Layout(of.shape[1], index, deviation, size, grid, exponent, dtype))


@EVERY_DTYPE
@pytest.mark.parametrize("deviation", [2, 4, 8])
@pytest.mark.parametrize("index", [2, 3, 4, 5, 6])
def test_every_width(index: int, deviation: int, dtype: torch.dtype) -> None:
    of = (torch.randn(5, 700) * 0.02).to(dtype)
    for grid in ("phi", "golden"):
        check(of, Layout(700, index, deviation, 64, grid, -10, dtype))


@EVERY_KIND
@EVERY_DTYPE
def test_every_kind_of_weight(kind: Callable[[], Tensor], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    of = kind().to(dtype)
    for fit in ("joint", "exact"):
        check(of, Layout(of.shape[1], exponent=-10, stored_dtype=dtype), fit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_pattern(dtype: torch.dtype) -> None:
    for of in every_pattern(dtype):
        for exponent in (-10, -100, 100):
            check(of, Layout(of.shape[1], exponent=exponent, stored_dtype=dtype))


def test_random_fp32_patterns() -> None:
    of = random_fp32(300_000)
    planes = check(of, Layout(of.shape[1], exponent=-10, stored_dtype=torch.float32))
    assert planes.exceptions is not None
    assert planes.exceptions.shape[0] > 10_000  # in most blocks


@EVERY_DTYPE
@pytest.mark.parametrize("columns", [1, 7, 63, 511, 512, 513, 1000, 1025])
@pytest.mark.parametrize("rows", [1, 31, 70])
def test_odd_shapes(rows: int, columns: int, dtype: torch.dtype) -> None:
    of = (torch.randn(rows, columns) * 0.02).to(dtype)
    check(of, Layout(columns, exponent=-10, stored_dtype=dtype))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 1023, 1024, 1025, 33_000])
def test_starts_of_few_and_of_many_blocks(rows: int) -> None:
    """One thread block scans 1024 starts at a time."""
    of = (torch.randn(rows, 3) * 0.02).bfloat16()
    planes = check(of, Layout(3, 4, 4, 32, exponent=-10, stored_dtype=torch.bfloat16))
    assert planes.starts is not None
    assert planes.starts.numel() == -(-rows // 32)


def test_the_largest_blocks() -> None:
    """Weights that are far from every edge take as many bits as they have."""
    of = torch.zeros(40, 2048)
    of[:, ::64] = 3e38
    planes = check(of, Layout(2048, 2, 2, 64, exponent=112, stored_dtype=torch.float32))
    assert planes.offsets is not None
    assert (planes.offsets < 0).any()  # beyond 2^15 of 16 bits


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (64,), (2, 3, 600)], ids=str)
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    of = torch.randn(shape).bfloat16()
    planes = check(of, Layout(shape[-1], exponent=-10, stored_dtype=torch.bfloat16))
    assert of.numel() > 0 or planes.remainder.numel() == PADDING


@EVERY_DTYPE
def test_strided_and_misaligned_weights_are_read_as_they_are(dtype: torch.dtype) -> None:
    layout = Layout(600, exponent=-10, stored_dtype=dtype)
    wide = torch.randn(20, 1300).to(dtype).cuda()
    before = wide.clone()
    for of in (wide[::2, 3:603], wide[:, 1:1201:2], wide[:12, 7:607].t().contiguous().t()):
        wanted = compiled_exact(of.cpu().clone(), layout)
        found = encoded(of, on_gpu(wanted), layout)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted[4:], strict=True))
    assert torch.equal(wide, before)


@pytest.mark.parametrize("deviation", [4, 8])
def test_planes_at_any_address_and_nothing_beside_them_is_written(deviation: int) -> None:
    of = difficult(torch.bfloat16)
    layout = Layout(of.shape[1], 4, deviation, 64, "phi", -10, torch.bfloat16)
    wanted = compiled_exact(of, layout)
    kept = [None if plane is None else surrounded(plane) for plane in (of, *wanted[:4])]
    before = [None if one is None else one[1].clone() for one in kept]
    weight, *lossy = (None if one is None else one[0] for one in kept)
    found = phi.encode_remainder(weight, *lossy, *settings(layout))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted[4:], strict=True))
    for one, old in zip(kept, before, strict=True):
        assert one is None or torch.equal(one[1].view(torch.uint8), old.view(torch.uint8))


def test_no_byte_is_left_as_it_was() -> None:
    """Memory that is allocated anew holds what was there: here, ones."""
    of = difficult(torch.bfloat16)
    layout = Layout(of.shape[1], exponent=-10, stored_dtype=torch.bfloat16)
    wanted = compiled_exact(of, layout)
    for filler in (0x00, 0xFF):
        there, weight = on_gpu(wanted), of.cuda()
        for size in (64, 512, 2048, 65536, 1 << 20, 4 << 20):  # of the caching allocator
            del_me = [torch.full((size,), filler, dtype=torch.uint8, device="cuda") for _ in "abc"]
            del del_me
        found = encoded(weight, there, layout)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted[4:], strict=True))


def test_many_weights_and_again() -> None:
    of = (torch.randn(700, 4096) * 0.02).bfloat16()
    layout = Layout(4096, exponent=-10, stored_dtype=torch.bfloat16)
    planes = check(of, layout)
    for _ in range(3):
        again = encoded(of.cuda(), planes, layout)
        assert all(torch.equal(a, b) for a, b in zip(again, planes[4:], strict=True))


def test_places_of_exceptions_beyond_2_to_the_31() -> None:
    columns, rows = 1 << 16, (1 << 15) + 2
    of = torch.full((rows, columns), 0.01, dtype=torch.bfloat16, device="cuda")
    of[-1, -3] = torch.inf
    layout = Layout(columns, 2, 2, 128, exponent=-10, stored_dtype=torch.bfloat16)
    planes = phi.encode(of, None, *settings(layout), "joint")
    lossy = Planes(*(plane if plane.shape[-1] else None for plane in planes))
    *_, starts, exceptions = rest = encoded(of, lossy, layout)
    assert exceptions.tolist() == [[rows * columns - 3, 0x7F800000]]
    assert starts.numel() == rows * columns // 512 // 32
    last = Planes(*(None if plane is None else plane[-1:] for plane in lossy[:4]))
    wanted = encoded(of[-1:], last, layout)
    size = wanted[0].numel()
    assert torch.equal(rest[0][-size:], wanted[0])
    assert torch.equal(rest[1][-1:], wanted[1])


def test_a_bad_word_is_refused() -> None:
    of = torch.randn(40, 1100).bfloat16()
    layout = Layout(1100, exponent=-10, stored_dtype=torch.bfloat16)
    planes = on_gpu(compiled_exact(of, layout))
    planes.scale[39, 17] = 0
    with pytest.raises(ValueError, match="scale: a word is not a normal fp16 number"):
        encoded(of.cuda(), planes, layout)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stored_dtype": None}, r"stored_dtype: expected torch.bfloat16, as the weight, got None"),
        ({"stored_dtype": torch.float16}, "weight: expected torch.float16, as stored"),
        ({"deviation_bits": 0}, "deviation_bits must be 2, 4 or 8 for an exact weight"),
        ({"group_size": 32}, "weight.scale: expected torch.int16 of shape"),
        ({"deviation_bits": 8}, "weight.deviation_low: missing"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], message: str) -> None:
    of = torch.randn(2, 128).bfloat16()
    layout = Layout(128, exponent=-10, stored_dtype=torch.bfloat16)
    planes = on_gpu(compiled_exact(of, layout))
    names = ("index_bits", "deviation_bits", "group_size", "grid", "exponent", "stored_dtype")
    given = dict(zip(names, settings(layout), strict=True)) | changed
    with pytest.raises(ValueError, match=message):
        phi.encode_remainder(of.cuda(), *planes[:4], *given.values())


def test_planes_elsewhere_or_of_another_shape_are_refused() -> None:
    of = torch.randn(4, 128).bfloat16()
    layout = Layout(128, exponent=-10, stored_dtype=torch.bfloat16)
    planes = compiled_exact(of, layout)
    there = on_gpu(planes)
    for weight, given in ((of.cuda(), planes), (of, there)):
        with pytest.raises(ValueError, match="weight: expected a tensor on the device of its"):
            encoded(weight, given, layout)
    with pytest.raises(ValueError, match="its planes are on different devices"):
        encoded(of.cuda(), there._replace(index=planes.index), layout)
    with pytest.raises(ValueError, match=r"expected leading dimensions \(2,\), got \(4,\)"):
        encoded(of[:2].cuda(), there, layout)


def test_on_a_stream_of_its_own() -> None:
    of = (torch.randn(64, 4096) * 0.02).bfloat16()
    layout, stream = Layout(4096, exponent=-10, stored_dtype=torch.bfloat16), torch.cuda.Stream()
    wanted = compiled_exact(of, layout)
    there, half = on_gpu(wanted), (of / 2).cuda()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        found = encoded(half * 2, there, layout)
    stream.synchronize()
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted[4:], strict=True))


def test_opcheck() -> None:
    of = torch.randn(3, 600).bfloat16()
    of[1, 7] = torch.inf
    layout = Layout(600, exponent=-10, stored_dtype=torch.bfloat16)
    for deviation in (4, 8):
        shape = replace(layout, deviation_bits=deviation)
        planes = on_gpu(compiled_exact(of, shape))
        opcheck(phi.encode_remainder.default, (of.cuda(), *planes[:4], *settings(shape)))
