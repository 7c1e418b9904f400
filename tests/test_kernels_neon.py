"""Kernels as a program without torch, against the readable reference: for aarch64 under qemu-user
(Debian: g++-aarch64-linux-gnu, qemu-user), and the baseline for the processor at hand."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest
import torch
from torch import Tensor

from phiquant import codec
from phiquant.codec import Layout, Planes
from tests.codec.support import layout_for
from tests.native import driver
from tests.native.driver import Answer, Driver
from tests.support import DTYPES
from tests.test_kernels import BITS, BITS_IDS, FITS, hard_weights, random_planes, same_choice
from tests.test_kernels_exact import FORMATS, bits_of, difficult
from tests.test_kernels_linear import TOLERANCE, error, typical_planes

CROSS = driver.found("aarch64-linux-gnu-g++")
EMULATOR = driver.found("qemu-aarch64", "qemu-aarch64-static")
AARCH64 = ["csrc/cpu/dispatch.cpp", "csrc/cpu/baseline.cpp", "csrc/cpu/neon.cpp"]
BAD_WORD = 1  # Status::kBadWord
NEEDED = "needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user)"
KINDS = [
    pytest.param("host", marks=pytest.mark.slow, id="baseline-here"),
    pytest.param("baseline", marks=pytest.mark.slow, id="baseline-aarch64"),
    pytest.param("neon", marks=pytest.mark.slow, id="neon-aarch64"),
]


@pytest.fixture(scope="module")
def programs() -> dict[str, list[str]]:
    return {}


def command_for(
    kind: str, programs: dict[str, list[str]], folder: pytest.TempPathFactory
) -> list[str]:
    processor = "host" if kind == "host" else "aarch64"
    if processor not in programs and processor == "host":
        compiler = driver.found("c++", "g++", "clang++")
        if compiler is None:
            pytest.skip("needs a C++ compiler")
        only = "-DPHIQUANT_ONLY=baseline"
        program = driver.build(compiler, ["csrc/cpu/baseline.cpp"], folder.mktemp("host"), only)
        programs[processor] = [str(program)]
    if processor not in programs:
        if CROSS is None or EMULATOR is None:
            pytest.skip(NEEDED)
        program = driver.build(CROSS, AARCH64, folder.mktemp("aarch64"), "-static")
        programs[processor] = [EMULATOR, str(program)]
    return programs[processor]


@pytest.fixture(scope="module", params=KINDS)
def kernels(
    request: pytest.FixtureRequest,
    programs: dict[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Driver:
    command = command_for(request.param, programs, tmp_path_factory)
    return Driver(command, None if request.param == "host" else request.param)


def tensor_of(answer: Answer, dtype: torch.dtype, *shape: int) -> Tensor:
    assert answer.status == 0
    return torch.frombuffer(bytearray(answer.arrays[0]), dtype=dtype).view(shape)


def same_bytes(array: bytes, plane: Tensor | None) -> bool:
    return array == (b"" if plane is None else plane.contiguous().numpy().tobytes())


@pytest.mark.parametrize("isa", ["neon", "baseline", None], ids=str)
@pytest.mark.slow
def test_neon_is_the_first_choice_of_aarch64(
    isa: str | None, programs: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = Driver(command_for("neon", programs, tmp_path_factory), isa)
    assert run.run([driver.name()])[0].arrays[0].decode() == (isa or "neon")


SHAPES = [(200, 32, -112), (200, 64, -10), (256, 64, 112), (200, 128, -10), (256, 128, -112)]


@pytest.mark.parametrize(("grid", "index", "deviation"), BITS, ids=BITS_IDS)
def test_decode_gives_the_reference_bits(
    grid: str, index: int, deviation: int, kernels: Driver
) -> None:
    cases = []
    for columns, size, exponent in SHAPES:
        layout = Layout(columns, index, deviation, size, grid, exponent)
        planes = random_planes(layout, 5)
        cases += [(planes, layout, dtype) for dtype in DTYPES]
    answers = kernels.run((driver.decode(*case) for case in cases), "flush")
    for answer, (planes, layout, dtype) in zip(answers, cases, strict=True):
        assert answer.status == 0
        assert same_bytes(answer.arrays[0], codec.decode(planes, layout, dtype).view(torch.uint8))


def lossy_planes(answer: Answer, layout: Layout, rows: int) -> Planes:
    assert answer.status == 0
    codes = [
        torch.frombuffer(bytearray(a), dtype=torch.uint8) if a else None for a in answer.arrays
    ]
    scale = torch.frombuffer(bytearray(answer.arrays[3]), dtype=torch.int16)
    return Planes(*(c if c is None else c.view(rows, -1) for c in codes[:3]), scale.view(rows, -1))


@pytest.mark.parametrize(("grid", "index", "deviation"), BITS, ids=BITS_IDS)
def test_encode_chooses_as_the_reference(
    grid: str, index: int, deviation: int, kernels: Driver
) -> None:
    of = hard_weights(torch.float32)[3:9]
    bits = {"index_bits": index, "deviation_bits": deviation, "grid": grid}
    cases = [
        (layout_for(of, group_size=size, **bits), fit)
        for size, fit in zip(codec.GROUP_SIZES, FITS, strict=True)
    ]
    answers = kernels.run(driver.encode(of, *case) for case in cases)
    for answer, (layout, fit) in zip(answers, cases, strict=True):
        assert same_choice(of, lossy_planes(answer, layout, len(of)), layout, fit)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grid", "index", "deviation", "size"), FORMATS, ids=str)
def test_exact_planes_are_the_references_and_bring_every_bit_back(
    grid: str, index: int, deviation: int, size: int, dtype: torch.dtype, kernels: Driver
) -> None:
    for columns in (63, 513):
        of = difficult(dtype, columns)
        layout = Layout(columns, index, deviation, size, grid, -10, dtype)
        lossy = codec.encode(of, layout, "exact")
        planes = codec.encode_remainder(of, lossy, layout)
        tasks = [
            driver.encode(of, layout, "exact"),
            driver.remainder(of, lossy, layout),
            driver.decode(planes, layout, dtype),
        ]
        chosen, rest, decoded = kernels.run(tasks, "flush")
        assert (chosen.status, rest.status, decoded.status) == (0, 0, 0)
        assert all(map(same_bytes, chosen.arrays, lossy[:4]))
        assert same_bytes(rest.arrays[0], planes.remainder)
        same_exceptions(rest.arrays[2], planes, of)
        expected = codec.decode(planes._replace(exceptions=None), layout, dtype)
        assert same_bytes(decoded.arrays[0], expected.view(torch.uint8))


def same_exceptions(array: bytes, planes: Planes, of: Tensor) -> None:
    """Kernels leave bits of the stored dtype, which the binding widens."""
    found = torch.frombuffer(bytearray(array), dtype=torch.int64).view(-1, 2)
    assert planes.exceptions is not None
    assert torch.equal(found[:, 0], planes.exceptions[:, 0])
    mask = (1 << 8 * of.element_size()) - 1
    assert torch.equal(found[:, 1], bits_of(of).flatten()[found[:, 0]].long() & mask)


def products(kernels: Driver, layout: Layout, dtype: torch.dtype, rows: Iterable[int]) -> None:
    """Products of every number of rows are within the tolerance, with and without a bias."""
    planes = typical_planes(layout, 19)
    cases = [
        (torch.randn(m, layout.columns, dtype=dtype) * 0.1, bias)
        for m, bias in product(rows, (None, torch.randn(19)))
    ]
    answers = kernels.run(driver.linear(x, planes, layout, bias) for x, bias in cases)
    for answer, (x, bias) in zip(answers, cases, strict=True):
        actual = tensor_of(answer, dtype, len(x), 19)
        assert error(x, planes, layout, actual, bias) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("grid", "index", "deviation"), BITS, ids=BITS_IDS)
def test_products_are_within_tolerance(
    grid: str, index: int, deviation: int, kernels: Driver
) -> None:
    for size, columns, dtype in zip(codec.GROUP_SIZES, (70, 400, 128), DTYPES, strict=True):
        products(kernels, Layout(columns, index, deviation, size, grid, 0), dtype, (1, 5, 8))


@pytest.mark.parametrize("deviation", [0, 4])
@pytest.mark.parametrize("size", codec.GROUP_SIZES)
def test_products_of_any_number_of_rows(size: int, deviation: int, kernels: Driver) -> None:
    for columns, exponent in ((5, 0), (size + 1, -112), (6145, 90)):  # several blocks of x
        layout = Layout(columns, 4, deviation, size, exponent=exponent)
        products(kernels, layout, torch.float32, range(1, 9))


@pytest.mark.parametrize("word", [0x0000, 0x03F8, 0x7C00, 0x7E01], ids=hex)
@pytest.mark.parametrize("deviation", [0, 4, 8])
def test_bad_words_are_found_wherever_they_are(word: int, deviation: int, kernels: Driver) -> None:
    layout = Layout(64 * 70, 4, deviation)
    planes, x = typical_planes(layout, 21), torch.randn(8, layout.columns)
    tasks = []
    for row, group in product((0, 20), (0, 17, 63, 64, 69)):
        scale = planes.scale.clone()
        scale[row, group] = word
        bad = planes._replace(scale=scale)
        tasks += [driver.linear(x[:m], bad, layout) for m in (1, 8)]
        tasks.append(driver.decode(bad, layout, torch.bfloat16))
    assert [answer.status for answer in kernels.run(tasks)] == [BAD_WORD] * len(tasks)


def test_the_program_agrees_with_the_reference_here(
    programs: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = Driver(command_for("host", programs, tmp_path_factory))
    assert run.run([driver.name()])[0].arrays == [b"baseline"]
    for deviation in (0, 4, 8):
        test_decode_gives_the_reference_bits("phi", 4, deviation, run)
        products(run, Layout(200, 4, deviation), torch.float32, (1, 8))
