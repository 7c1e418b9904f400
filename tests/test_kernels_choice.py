"""The compiled encoder scores few candidates exactly: it must not lose the best of all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from phiquant import codec, ops
from phiquant.codec import Layout, cells
from tests.support import run_python
from tests.test_kernels import FITS, compiled_encode, same_choice, scores
from tests.test_kernels_exact import compiled_exact

pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")
COLUMNS = 256


def normal() -> Tensor:
    return torch.randn(8, COLUMNS) * 0.02


def heavy_tails() -> Tensor:
    return normal() ** 3 * 1e4


def one_weight_a_group() -> Tensor:
    return torch.where(torch.arange(COLUMNS) % 32 == 5, normal(), 0)


def all_alike() -> Tensor:
    return torch.full((8, COLUMNS), 0.3) * torch.linspace(-1, 1, 8).unsqueeze(1)


def mirrored() -> Tensor:
    """Both directions reach equally far, so both signs have one scale: the first is taken."""
    half = normal()[:, ::2]
    return torch.stack((half, -half), -1).flatten(1)


def sparse() -> Tensor:
    return normal() * (torch.rand(8, COLUMNS) < 0.3)


def zeros_of_both_signs() -> Tensor:
    return torch.where(torch.rand(8, COLUMNS) < 0.5, normal() * 0.0, normal())


def on_levels(edges: bool = False) -> Tensor:
    """Already compressed: one candidate has almost no error; or every weight is on an edge."""
    layout = Layout(COLUMNS, exponent=-10)
    planes = codec.encode(normal(), layout)
    if not edges:
        return codec.decode(planes, layout)
    scale, bend = (t.unsqueeze(-1) for t in codec.read_words(planes.scale, layout))
    codes = torch.randint(9, 247, (8, layout.groups, layout.group_size))
    return (cells.edges(codes, bend, layout, 4) * scale).flatten(1)


def on_edges() -> Tensor:
    return on_levels(edges=True)


def near_edges() -> Tensor:
    return on_edges() * (1 + torch.randn(8, COLUMNS) * 3e-7)


def far_smaller_than_one() -> Tensor:
    return torch.cat((normal()[:4], normal()[:4].sign()), 0) * torch.where(
        torch.arange(COLUMNS) % 64 == 9, 1.0, 1e-6
    )


KINDS: list[Callable[[], Tensor]] = [
    normal,
    heavy_tails,
    one_weight_a_group,
    all_alike,
    mirrored,
    sparse,
    zeros_of_both_signs,
    on_levels,
    on_edges,
    near_edges,
    far_smaller_than_one,
]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])


def no_worse(of: Tensor, layout: Layout, fit: str) -> bool:
    """No group's score is above the reference's by more than its sums in fp32 can be off."""
    planes = compiled_encode(of, layout, fit)
    chosen = scores(of, planes, layout, fit)
    least = scores(of, codec.encode(of, layout, fit), layout, fit)
    # A candidate without an error, but for rounding, scores like another.
    unit = of.double().square().unflatten(-1, (layout.groups, -1)).sum(-1)
    power = 3 if fit == "joint" and layout.deviation_bits else 1
    return bool((chosen <= least * (1 + 3e-6) + unit**power * 1e-14**power).all())


@EVERY_KIND
@pytest.mark.parametrize("deviation_bits", [0, 2, 4, 8])
def test_the_best_candidate_is_chosen(kind: Callable[[], Tensor], deviation_bits: int) -> None:
    torch.manual_seed(deviation_bits)
    of = kind()
    for index_bits, size, fit in ((4, 64, "joint"), (3, 32, "index"), (2, 128, "deviation")):
        layout = Layout(COLUMNS, index_bits, deviation_bits, size, exponent=-10)
        assert no_worse(of, layout, fit), (index_bits, size, fit)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("deviation_bits", [0, 2, 4])
@pytest.mark.parametrize("size", codec.GROUP_SIZES)
def test_many_groups_are_as_the_reference_s(size: int, deviation_bits: int, fit: str) -> None:
    torch.manual_seed(size)
    of = torch.randn(32, 2048) * torch.logspace(-4, 1, 32).unsqueeze(1)
    layout = Layout(2048, 4, deviation_bits, size, exponent=-10)
    assert same_choice(of, compiled_encode(of, layout, fit), layout, fit)


@EVERY_KIND
@pytest.mark.parametrize("deviation_bits", [2, 4])
def test_every_group_s_word_is_the_reference_s(
    kind: Callable[[], Tensor], deviation_bits: int
) -> None:
    """Candidates are dropped by bounds of their errors: of no kind of group the best one."""
    torch.manual_seed(7 + deviation_bits)
    of = torch.cat([kind() for _ in range(4)])
    for size in codec.GROUP_SIZES:
        layout = Layout(COLUMNS, 4, deviation_bits, size, exponent=-10)
        assert same_choice(of, compiled_encode(of, layout, "joint"), layout, "joint"), size


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fit", ["joint", "exact"])
def test_remainder_bits_count(kind: Callable[[], Tensor], dtype: torch.dtype, fit: str) -> None:
    torch.manual_seed(1)
    of = kind().to(dtype)
    layout = Layout(COLUMNS, exponent=-10, stored_dtype=dtype)
    actual, expected = compiled_exact(of, layout, fit), codec.encode(of, layout, fit)
    assert torch.equal(actual.scale, expected.scale)


@pytest.mark.parametrize(
    "kind", [normal, on_levels, far_smaller_than_one], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("size", codec.GROUP_SIZES)
def test_remainder_bits_by_table(kind: Callable[[], Tensor], size: int) -> None:
    """Scales of all mantissas, those whose sides of zero differ among them, and of exponents that
    the tables have or have not."""
    torch.manual_seed(size)
    powers = torch.logspace(-20, 4, 32, base=2.0)
    of = (kind().repeat(4, 1) * powers.unsqueeze(1)).bfloat16()
    layout = Layout(COLUMNS, group_size=size, exponent=-10, stored_dtype=torch.bfloat16)
    actual, expected = compiled_exact(of, layout, "joint"), codec.encode(of, layout, "joint")
    assert torch.equal(actual.scale, expected.scale)


def test_positions_near_zero_are_in_the_first_cell() -> None:
    """Weights far below the smallest scale: estimates of their positions are on both sides of 0."""
    torch.manual_seed(3)
    of, layout = normal() * 1e-3, Layout(COLUMNS, exponent=20)
    assert same_choice(of, compiled_encode(of, layout, "joint"), layout, "joint")


def test_both_signs_alike_take_the_first() -> None:
    torch.manual_seed(2)
    layout = Layout(COLUMNS, exponent=-10)
    words = compiled_encode(mirrored(), layout, "joint").scale
    assert (words >= 0).all()


PROGRAM = """
import hashlib, torch
from phiquant import codec
from tests.test_kernels import FITS, compiled_encode
from tests.test_kernels_choice import COLUMNS, KINDS
from tests.test_kernels_exact import compiled_exact
torch.manual_seed(0)
digest = hashlib.sha256()
for kind in KINDS * 2:
    of, importance = kind(), torch.rand(COLUMNS)
    for bits in ((4, 4), (4, 0), (2, 2), (3, 4)):
        for fit in FITS:
            layout = codec.Layout(COLUMNS, *bits, exponent=-10)
            for weights in (None, importance):
                for plane in compiled_encode(of, layout, fit, weights):
                    digest.update(b"" if plane is None else plane.numpy().tobytes())
    for dtype in codec.DTYPES:
        layout = codec.Layout(COLUMNS, exponent=-10, stored_dtype=dtype)
        for fit in ("joint", "exact"):
            digest.update(compiled_exact(of.to(dtype), layout, fit).scale.numpy().tobytes())
print(digest.hexdigest())
"""


def planes_on(isa: str) -> str:
    run = run_python(f"import os\nos.environ['PHIQUANT_ISA'] = '{isa}'\n" + PROGRAM)
    if "this CPU and build have" in run.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert run.returncode == 0, run.stderr[-2000:]
    return str(run.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_instruction_sets_choose_alike(isa: str) -> None:
    assert planes_on(isa) == planes_on("baseline")
