"""decode and embedding on a GPU: the reference's bits, from planes at any address."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from phiquant import codec
from phiquant.codec import Layout, Planes
from tests.cuda.support import (
    ON_A_GPU,
    compiled_exact,
    difficult,
    layouts,
    misaligned,
    on_gpu,
    phi,
    random_planes,
    same,
    settings,
    surrounded,
)
from tests.support import DTYPES, run_python, weight

pytestmark = ON_A_GPU
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LAYOUTS = pytest.mark.parametrize(
    "layout", layouts(), ids=lambda of: f"{of.grid}-{of.index_bits}+{of.deviation_bits}"
)


def decoded(planes: Planes, layout: Layout, dtype: torch.dtype) -> torch.Tensor:
    return phi.decode(*planes, layout.columns, *settings(layout), dtype)


@EVERY_DTYPE
@LAYOUTS
def test_the_references_bits(layout: Layout, dtype: torch.dtype) -> None:
    for columns in (1, 63, 200, 64 * 9, 2 * 2048 + 40):
        shape = replace(layout, columns=columns)
        planes = random_planes(shape, 5)
        expected = codec.decode(planes, shape, dtype)
        assert same(decoded(on_gpu(planes), shape, dtype), expected)
        assert same(decoded(misaligned(planes), shape, dtype), expected)


@pytest.mark.parametrize("deviation", [0, 2, 4, 8])
def test_many_rows_of_whole_groups(deviation: int) -> None:
    layout = Layout(1024, 4, deviation, exponent=-10)
    planes = random_planes(layout, 333)
    expected = codec.decode(planes, layout, torch.bfloat16)
    assert same(decoded(on_gpu(planes), layout, torch.bfloat16), expected)


@EVERY_DTYPE
@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("grid", "index", "deviation", "size"),
    [
        ("phi", 4, 4, 64),
        ("phi", 4, 2, 64),
        ("phi", 2, 2, 32),
        ("phi", 5, 8, 128),
        ("golden", 3, 4, 64),
    ],
)
def test_exact_weights(
    grid: str, index: int, deviation: int, size: int, stored: torch.dtype, dtype: torch.dtype
) -> None:
    of = difficult(stored)
    layout = Layout(of.shape[1], index, deviation, size, grid, -10, stored)
    planes = compiled_exact(of, layout)
    expected = codec.decode(planes, layout, dtype)
    assert same(decoded(on_gpu(planes), layout, dtype), expected)
    assert same(decoded(misaligned(planes), layout, dtype), expected)
    shallow = Planes(*planes[:4], exceptions=planes.exceptions)
    lossy = layout.without_remainder
    assert same(decoded(on_gpu(shallow), lossy, dtype), codec.decode(shallow, lossy, dtype))


@pytest.mark.parametrize("columns", [1, 63, 511, 512, 513, 1025])
def test_short_blocks(columns: int) -> None:
    of = weight(3, columns, dtype=torch.bfloat16)
    layout = Layout(columns, exponent=-10, stored_dtype=torch.bfloat16)
    assert same(decoded(on_gpu(compiled_exact(of, layout)), layout, torch.bfloat16), of)


def test_rows_may_have_starts_of_their_own() -> None:
    of = difficult(torch.float16)
    layout = Layout(of.shape[1], exponent=-10, stored_dtype=torch.float16)
    rows = torch.tensor([9, 0, 3])
    picked = codec.pick_rows(compiled_exact(of, layout), rows, layout.columns)
    assert same(decoded(on_gpu(picked), layout, torch.float16), of[rows])


def test_planes_of_any_dimensions_and_strides() -> None:
    layout = Layout(200)
    planes = random_planes(layout, 12)
    expected = codec.decode(planes, layout, torch.float32)
    cube = (None if p is None else p.unflatten(0, (3, 4)) for p in planes)
    assert same(
        decoded(on_gpu(Planes(*cube)), layout, torch.float32), expected.unflatten(0, (3, 4))
    )
    wide = (None if p is None else torch.stack([p, p], 1).cuda()[:, 1] for p in planes)
    assert same(decoded(Planes(*wide), layout, torch.float32), expected)
    empty = Planes(*(None if p is None else p[:0] for p in on_gpu(planes)))
    assert decoded(empty, layout, torch.float32).shape == (0, 200)


@EVERY_DTYPE
def test_embedding_decodes_the_rows_asked_for(dtype: torch.dtype) -> None:
    for layout in (Layout(200, exponent=-10), Layout(256, 4, 0, exponent=-10)):
        planes = random_planes(layout, 50)
        every, there = codec.decode(planes, layout, dtype), on_gpu(planes)
        for indices in (torch.randint(50, (3, 7)), torch.tensor(49), torch.randint(50, (8,))[::2]):
            for kind in (torch.int32, torch.int64):
                asked = indices.cuda().to(kind)
                rows = phi.embedding(asked, *there, layout.columns, *settings(layout), dtype)
                assert same(rows, every[indices])


def test_embedding_of_an_exact_weight() -> None:
    of = difficult(torch.bfloat16)
    layout = Layout(of.shape[1], exponent=-10, stored_dtype=torch.bfloat16)
    planes, indices = on_gpu(compiled_exact(of, layout)), torch.tensor([[0, 5], [5, 1], [11, 0]])
    asked = indices.cuda()
    rows = phi.embedding(asked, *planes, of.shape[1], *settings(layout), torch.bfloat16)
    assert same(rows, of[indices])


def test_a_bad_word_is_nan_and_its_neighbours_are_not() -> None:
    layout = Layout(256, 4, 4)
    planes = random_planes(layout, 3)
    for word in (0x0000, 0x03F8, 0x7C00, 0x7E01):
        scale = planes.scale.clone()
        scale[1, 2] = word
        weights = decoded(on_gpu(planes._replace(scale=scale)), layout, torch.bfloat16).cpu()
        bad = torch.zeros(3, 256, dtype=torch.bool)
        bad[1, 128:192] = True
        assert torch.equal(weights.isnan(), bad)


def test_a_bad_word_of_an_exact_weight() -> None:
    of = weight(2, 1024, dtype=torch.bfloat16)
    layout = Layout(1024, exponent=-10, stored_dtype=torch.bfloat16)
    planes = on_gpu(compiled_exact(of, layout))
    planes.scale[0, 3] = 0
    weights = decoded(planes, layout, torch.bfloat16).cpu()
    assert bool(weights[0, 192:512].isnan().all())  # to the end of its block
    assert same(weights[0, :192], of[0, :192])
    assert same(weights[0, 512:], of[0, 512:])
    assert same(weights[1], of[1])


def test_corrupt_starts_read_nothing_outside() -> None:
    of = weight(4, 1024, dtype=torch.bfloat16)
    layout = Layout(1024, exponent=-10, stored_dtype=torch.bfloat16)
    planes = on_gpu(compiled_exact(of, layout))
    for start in (-1, 1 << 40, planes.remainder.numel() - 8):
        broken = planes._replace(starts=torch.full_like(planes.starts, start))
        weights = decoded(broken, layout, torch.bfloat16)
        assert weights.isnan().any()
    assert same(decoded(planes, layout, torch.bfloat16), of)


def test_only_the_current_stream_is_used() -> None:
    layout = Layout(4096, exponent=-10)
    planes = on_gpu(random_planes(layout, 64))
    expected, stream = decoded(planes, layout, torch.bfloat16), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = decoded(planes, layout, torch.bfloat16)
        assert not stream.query()  # nothing waited for the device
    stream.synchronize()
    assert same(late, expected)


def test_nothing_beside_the_planes_is_written() -> None:
    layout = Layout(200, exponent=-10)
    planes = random_planes(layout, 7)
    kept = [None if p is None else surrounded(p) for p in planes]
    before = [None if one is None else one[1].clone() for one in kept]
    decoded(Planes(*(None if one is None else one[0] for one in kept)), layout, torch.float32)
    for one, old in zip(kept, before, strict=True):
        assert one is None or torch.equal(one[1], old)


def test_an_index_out_of_range_stops_the_device() -> None:
    done = run_python(
        """
        import torch
        from phiquant.codec import Layout
        from tests.cuda.support import on_gpu, random_planes, settings
        layout = Layout(64)
        planes = on_gpu(random_planes(layout, 5))
        asked = torch.tensor([5], device="cuda")
        torch.ops.phiquant.embedding(asked, *planes, 64, *settings(layout), torch.float32)
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print("refused", type(error).__name__)
        """
    )
    assert "refused" in done.stdout


@pytest.mark.slow
def test_more_than_two_to_the_31_weights() -> None:
    layout = Layout(4096, 4, 0, exponent=-10)
    some = random_planes(layout, 512)
    repeats = (1 << 31) // (512 * 4096) + 1
    many = Planes(*(None if p is None else p.cuda().repeat(repeats, 1) for p in some))
    weights = decoded(many, layout, torch.bfloat16)
    assert weights.numel() > 1 << 31
    assert same(weights[-512:], codec.decode(some, layout, torch.bfloat16))
    odd = replace(layout, columns=4090)  # every octet by the kernel for any planes
    assert same(decoded(many, odd, torch.bfloat16)[-512:], weights[-512:, :4090].contiguous())
