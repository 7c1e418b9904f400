"""What a profiler counts of each kernel: how its report is read."""

from __future__ import annotations

import csv
import io
import sys

import pytest
import torch

from benchmarks import cuda_counters
from benchmarks.cuda_counters import _METRICS, _REASONS, _SELECTED, _STALL, kernels_of, report
from tests.cuda.support import ON_A_GPU

UNITS = {"us": "us", "read": "Mbyte", "written": "Kbyte", "shared": "Kbyte/block"}
VALUES = {"us": 20.0, "read": 31.0, "written": 1000.0, "registers": 116, "threads": 512}


def profile(*kernels: str) -> str:
    """What ncu prints, with the cases' own lines in it: each case begins with torch's kernel."""
    columns = ["Kernel Name", *_METRICS.values(), _SELECTED, *map(_STALL.format, _REASONS)]
    units = {_METRICS[name]: unit for name, unit in UNITS.items()}
    text = io.StringIO("==PROF== Connected\ncase: first\ncase: second\n")
    text.seek(0, io.SEEK_END)
    rows = csv.DictWriter(text, columns, restval="", quoting=csv.QUOTE_ALL)
    rows.writeheader()
    rows.writerow(units)
    for kernel in kernels:
        row = {metric: f"{VALUES.get(name, 2):,}" for name, metric in _METRICS.items()}
        row |= {_STALL.format(reason): "1.0" for reason in _REASONS} | {_SELECTED: "1.0"}
        row[_STALL.format("barrier")] = "16.0"
        rows.writerow({**row, "Kernel Name": kernel})
    return text.getvalue()


SPIN = "at::cuda::spin_kernel(long)"
SIXTEEN = "void phiquant::cuda::<unnamed>::sixteen_rows<phiquant::cuda::Shape<0, 1>>(Plans)"
OURS = "void phiquant::cuda::product_of_indices<true>(Products, int, int)"


def test_kernels_are_of_the_case_they_come_after() -> None:
    found = kernels_of(profile(SPIN, OURS, SPIN, OURS, SIXTEEN))
    assert [(row["case"], row["kernel"]) for row in found] == [
        ("first", "product_of_indices<true>"),
        ("second", "product_of_indices<true>"),
        ("second", "sixteen_rows<Shape<0, 1>>"),
    ]


def test_units() -> None:
    [row] = kernels_of(profile(SPIN, OURS))
    assert row["us"] == pytest.approx(20)
    assert row["read"] == pytest.approx(31e6)
    assert row["written"] == pytest.approx(1e6)
    assert row["shared"] == pytest.approx(2e3)
    assert row["stalls"]["barrier"] == pytest.approx(16 / (16 + len(_REASONS)))


def test_a_line_for_each_kernel() -> None:
    line = report(kernels_of(profile(SPIN, OURS))).splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:4] == ["first", "product_of_indices<true>", "20.00", "1.6"]
    assert cells[-1].startswith("barrier 53%, ")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_without_the_profiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["cuda_counters"])
    with pytest.raises(SystemExit):
        cuda_counters.arguments()
    assert "needs ncu" in capsys.readouterr().err


class TestOnAGpu:
    pytestmark = ON_A_GPU

    def test_every_case_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda_counters, "_SHAPE", (256, 128))
        monkeypatch.setattr(cuda_counters, "_EXPERTS", (8, 64, 128))
        with torch.inference_mode():
            for _, call in cuda_counters.cases():
                call()
