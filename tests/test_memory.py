"""Freed memory really goes back, where the C library can do that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phiquant import memory
from phiquant.memory import FreedMemory, page_out

MEGABYTE = 1 << 20


def resident(kind: str = "RssAnon") -> int:
    """Memory of this process in bytes, anonymous or of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {kind} in /proc/self/status")


@pytest.mark.skipif(memory._trimmer() is None, reason="the C library has no malloc_trim")
def test_gives_back_what_lies_between_living_blocks() -> None:
    torch.empty(30 * MEGABYTE, dtype=torch.uint8)  # freed at once: glibc now keeps such blocks
    blocks = [torch.ones(MEGABYTE, dtype=torch.uint8) for _ in range(100)]
    full = resident()
    del blocks[:-1:2], blocks[:-1:2]
    FreedMemory().give_back()
    assert full - resident() > 50 * MEGABYTE


def test_waits_until_much_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(memory, "_trimmer", lambda: calls.append)
    freed = FreedMemory()
    freed.add(memory._EVERY - 1)
    assert calls == []
    freed.add(1)
    assert calls == [0]
    freed.add(1)
    assert calls == [0]


def test_is_silent_without_a_trimmer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    freed = FreedMemory()
    freed.add(memory._EVERY)
    assert freed._waiting == 0


BETWEEN_LIVING_BLOCKS = """
import sys, torch
from phiquant.memory import return_at_once
from tests.test_memory import MEGABYTE, resident
if sys.argv[1] == "at once":
    return_at_once()
torch.empty(30 * MEGABYTE, dtype=torch.uint8)
blocks = [torch.ones(2 * MEGABYTE, dtype=torch.uint8) for _ in range(50)]
full = resident()
del blocks[:-1:2], blocks[:-1:2]
print((full - resident()) // MEGABYTE)
"""


@pytest.mark.skipif(memory._trimmer() is None, reason="the C library is not glibc")
def test_blocks_go_back_at_once_in_a_process_that_asks_for_it() -> None:
    """It holds for the rest of a process, so each way has one of its own."""
    root = str(Path(__file__).resolve().parents[1])
    returned = {}
    for way in ("at once", "later"):
        done = subprocess.run(
            [sys.executable, "-c", BETWEEN_LIVING_BLOCKS, way],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": root},
        )
        returned[way] = int(done.stdout)
    assert returned["at once"] > 60
    assert returned["later"] < 20


def mapped(file: Path, count: int) -> torch.Tensor:
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=count)
    return torch.tensor([], dtype=torch.uint8).set_(storage)


@pytest.mark.skipif(memory._adviser() is None, reason="no madvise")
def test_pages_of_files_go_back_and_what_was_written_stays(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_bytes(bytes(range(256)) * (MEGABYTE // 8))
    weights = mapped(file, 32 * MEGABYTE)
    assert weights.max() == 255
    weights[100] = 7  # a private page now
    full = resident("RssFile")
    page_out([str(tmp_path / "another")])
    assert full - resident("RssFile") < MEGABYTE
    FreedMemory([file]).give_back()
    assert full - resident("RssFile") > 24 * MEGABYTE
    assert weights[100] == 7
    assert torch.equal(weights[256:].view(-1, 256)[-1], torch.arange(256).to(torch.uint8))


def test_no_madvise_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_adviser", lambda: None)
    FreedMemory(["nothing"]).give_back()
