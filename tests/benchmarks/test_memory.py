"""The memory benchmark on tiny models: its cases agree, and its peaks are those of what runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory, memory_cases
from benchmarks.resident import peak_of, resident

MEGABYTE = 1 << 20
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the kernel tells peaks on Linux only"
)


def test_a_peak_is_seen_though_it_is_gone_again() -> None:
    def run() -> int:
        block = torch.ones(64 * MEGABYTE, dtype=torch.uint8)
        return int(block[-1])

    result, peaks = peak_of(run)
    assert result == 1
    assert 63 * MEGABYTE < peaks["all"] < 80 * MEGABYTE


def test_files_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "pages"
    file.write_bytes(b"\1" * 32 * MEGABYTE)

    def run() -> torch.Tensor:
        storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=32 * MEGABYTE)
        pages = torch.tensor([], dtype=torch.uint8).set_(storage)
        assert pages.max() == 1
        return pages  # is still there when it is looked at for the last time

    _pages, peaks = peak_of(run)
    assert peaks["files"] > 31 * MEGABYTE
    assert peaks["anonymous"] < 16 * MEGABYTE
    assert set(resident()) == {"all", "anonymous", "files", "highest"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every case in this process: what it comes by, and peaks that are made up."""
    folder = tmp_path_factory.mktemp("tiny")
    memory.make(folder, memory.TINY)
    found = {}
    for name, run in memory_cases.cases(shard=100_000).items():
        written = "exact" if name.endswith("exact") else "lossy"
        digest = memory_cases.digest_of(run(folder), folder, written)
        found[name] = {"digest": digest, "peaks": dict.fromkeys(("all", "anonymous", "files"), 1)}
    return folder, found


def test_all_ways_agree(measured: tuple[Path, dict[str, Any]]) -> None:
    folder, found = measured
    memory.check(found, folder)
    wrong = copy.deepcopy(found)
    wrong["reload, exact"]["digest"] = "another"
    with pytest.raises(AssertionError, match="not the same planes"):
        memory.check(wrong, folder)


def test_bars_are_in_terms_of_what_is_read(measured: tuple[Path, dict[str, Any]]) -> None:
    folder, found = measured
    size = memory.sizes(folder)
    assert size["index"] < size["deviation"] == size["lossy"] < size["exact"] < size["plain"]
    allowed = memory.bars(size, shard=100_000)
    assert allowed["on load, exact"] == size["exact"] + 2 * size["largest"]
    assert allowed["command, exact"] == 100_000 + 2 * size["largest"]
    assert allowed["reload, index"] == pytest.approx(1.05 * size["index"])
    found["reload, index"]["peaks"]["all"] = 1.06 * size["index"]
    verdicts = {row["case"]: row["verdict"] for row in memory.report(found, size, 100_000)}
    assert verdicts["reload, index"] == "MISS"
    assert verdicts["reload, exact"] == "pass"
    assert verdicts["plain"] is None
