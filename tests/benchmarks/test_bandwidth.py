"""Readers move the bytes that they are said to move, and the cache's size is the system's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import bandwidth


def test_measure_sets_threads_and_puts_them_back() -> None:
    before = torch.get_num_threads()
    rows = bandwidth.measure((1, 2), repeats=2, size=1_000_000)
    assert torch.get_num_threads() == before
    assert {row["threads"] for row in rows} == {1, 2}
    assert all(0 < row["gb_per_s"] <= row["best_gb_per_s"] for row in rows)
    best = bandwidth.roofline(rows, 2)
    assert best == max(row["gb_per_s"] for row in rows if row["threads"] == 2)
    assert f"{best:.2f}" in bandwidth.report(rows)


@pytest.mark.parametrize("name", ["torch.mv, fp32", "torch copy, read and written"])
def test_bytes_are_those_of_the_block(name: str) -> None:
    reader = bandwidth.readers(size=4_000_000)[name]
    assert reader.bytes == pytest.approx(4_000_000, rel=0.01)
    assert isinstance(reader.run(), torch.Tensor)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        (["48K", "2048K", "107520K"], 107520 << 10),
        (["1M"], 1 << 20),
        ([], 105 << 20),
        (["unknown"], 105 << 20),
    ],
    ids=["three levels", "megabytes", "no such files", "not a size"],
)
def test_last_level_cache(sizes: list[str], wanted: int, tmp_path: Path) -> None:
    for number, size in enumerate(sizes):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert bandwidth.last_level_cache(tmp_path) == wanted
