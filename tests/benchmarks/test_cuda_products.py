"""Products of all contenders for one shape: what is reported, and that copies exceed the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import cuda_products
from benchmarks.cuda_contenders import CUBLAS
from benchmarks.cuda_products import Products, clocks, copies, report
from tests.cuda.support import ON_A_GPU


def row(what: str, rows: int, times: float, clock: float) -> dict[str, Any]:
    given = {"shape": "64x128", "what": what, "rows": rows, "times_cublas": times}
    return given | {"bits": 4.25, "us": 8.0, "of_copy": 0.5, "sm_mhz": clock, "lowest_sm_mhz": 9.0}


ROWS = [
    row(CUBLAS, 1, 1.0, 1980.0),
    row("phiquant index", 1, 3.0, 1960.4),
    row(CUBLAS, 2048, 1.0, 1500.0),
    row("phiquant index", 2048, 0.75, 1400.0),
]


def test_a_line_for_each_contender_and_the_clocks() -> None:
    lines = [line.split("|")[1:-1] for line in report(ROWS).splitlines()[2:]]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert cells[0] == ["what", "bits", "us, M = 1", "of copy", "x, M = 1", "x, M = 2048"]
    assert cells[3] == ["phiquant index", "4.25", "8.00", "0.5", "3.00", "0.75"]
    assert cells[4] == ["SM clock, MHz, median", "-", "-", "-", "1970", "1450"]
    assert cells[5] == ["SM clock, MHz, lowest", "-", "-", "-", "9", "9"]


def test_shapes_may_have_other_numbers_of_rows() -> None:
    """As where a run was cut off."""
    other = [each | {"shape": "32x64"} for each in ROWS[:2]]
    heads = [line for line in report(ROWS + other).splitlines() if line.startswith("| what")]
    assert ["M = 2048" in head for head in heads] == [True, False]


def test_clocks_are_of_all_contenders() -> None:
    assert clocks(ROWS, [2048])[0][-1:] == [1450]


def test_copies_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_products, "_ROTATION", 1000)
    plane = torch.arange(100, dtype=torch.uint8)
    made = copies((plane, None, plane))
    assert len(made) == 5
    assert made[0][0] is plane
    assert all(each[1] is None for each in made)
    assert made[4][2] is not plane
    assert made[4][2] is not None
    assert torch.equal(made[4][2], plane)
    assert len(copies((torch.zeros(2000, dtype=torch.uint8),))) == 2


@pytest.mark.cuda
@ON_A_GPU[1]
@torch.inference_mode()
def test_contenders_are_compared_with_cublas_beside_them() -> None:
    products = Products("512x1024", ["tinygemm"], 1e12)
    assert not products.missing
    for rows in (1, 16):
        found = products.measure(rows)
        assert [each["what"] for each in found] == [CUBLAS, "torch int4pack g64"]
        assert found[0]["times_cublas"] == 1
        assert found[1]["times_cublas"] == found[0]["us"] / found[1]["us"]
