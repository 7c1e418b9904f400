"""Every instruction set gives the same planes and weights; constants are the reference's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from phiquant import grid, ops
from tests.support import run_python

pytestmark = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")
HEADER = Path(__file__).parents[1] / "csrc" / "include" / "phiquant" / "grid.h"

# Prints one hash of all planes and decoded weights, and the largest error of products.
PROGRAM = """
import hashlib, itertools, torch
from phiquant import codec, ops
from phiquant.codec import Planes
from tests.test_kernels import FITS, hard_weights, settings
from tests.test_kernels_exact import bits_of, compiled_exact, every_pattern, random_fp32
phi, digest, worst = torch.ops.phiquant, hashlib.sha256(), 0.0
torch.manual_seed(0)
of, x = hard_weights(torch.float32)[:9], torch.randn(9, 200)
for name, b, d, g in itertools.product(("phi", "golden"), (2, 4, 5), (0, 2, 4, 8), (32, 128)):
    layout = codec.Layout(200, b, d, g, name, -10)
    for fit in FITS:
        planes = phi.encode(of, None, *settings(layout), fit)
        for plane in planes:
            digest.update(plane.numpy().tobytes())
    planes = Planes(*(plane if plane.shape[-1] else None for plane in planes))
    for dtype in codec.DTYPES:
        weight = phi.decode(*planes, 200, *settings(layout), dtype)
        digest.update(weight.view(torch.uint8).numpy().tobytes())
    weight = phi.decode(*planes, 200, *settings(layout), torch.float32)
    for rows in range(1, 10):
        product = phi.linear(x[:rows], *planes, None, 200, *settings(layout))
        unit = x[:rows].abs() @ weight.abs().T + 1e-30
        worst = max(worst, ((product - x[:rows] @ weight.T).abs() / unit).max().item())
hard = [(w, d) for d in (torch.bfloat16, torch.float16) for w in every_pattern(d)]
for weight, dtype in [*hard, (random_fp32(10_000_000), torch.float32)]:
    for name, d, fit in (("phi", 4, "joint"), ("phi", 8, "exact"), ("golden", 2, "joint")):
        layout = codec.Layout(weight.shape[1], 4, d, 64, name, -10, dtype)
        planes = compiled_exact(weight, layout, fit)
        for plane in planes:
            digest.update(b"" if plane is None else plane.numpy().tobytes())
        again = phi.decode(*planes, weight.shape[1], *settings(layout), dtype)
        assert torch.equal(bits_of(again), bits_of(weight)), (name, dtype)
print(digest.hexdigest(), worst)
"""


def result_on(isa: str) -> tuple[str, float]:
    run = run_python(f"import os\nos.environ['PHIQUANT_ISA'] = '{isa}'\n" + PROGRAM)
    if "this CPU and build have" in run.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert run.returncode == 0, run.stderr[-2000:]
    digest, worst = run.stdout.split()[-2:]
    return digest, float(worst)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_instruction_sets_agree(isa: str) -> None:
    digest, worst = result_on(isa)
    assert (digest, worst < 1e-5) == (result_on("baseline")[0], True)


def test_an_unknown_instruction_set_is_named() -> None:
    run = run_python(
        "import os\nos.environ['PHIQUANT_ISA'] = 'mmx'\n"
        "import torch, phiquant.ops\n"
        "torch.ops.phiquant.encode(torch.ones(1, 64), None, 4, 4, 64, 'phi', -10, None, 'joint')\n"
    )
    assert "ValueError: PHIQUANT_ISA: this CPU and build have" in run.stderr
    assert "baseline, got mmx" in run.stderr


@pytest.mark.parametrize(
    ("name", "reference"),
    [("kBends", grid.BENDS), ("kLines", grid.LINES), ("kLadder", grid.LADDER)],
    ids=["bends", "lines", "ladder"],
)
def test_constants_are_the_reference_s(name: str, reference: tuple[float, ...]) -> None:
    body = re.search(rf"{name}\[\w+\] = {{(.*?)}};", HEADER.read_text(), re.DOTALL)
    assert body is not None
    literals = re.findall(r"(0x[^f,\s]*(?:[a-f][^f,\s]*)*?p[+-]\d+)f", body[1])
    assert tuple(map(float.fromhex, literals)) == reference
    assert all(value == torch.tensor(value).item() for value in reference)  # fp32 literals
