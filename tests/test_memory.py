"""Freed memory really goes back, where the C library can do that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from phiquant import memory
from phiquant.memory import FreedMemory

MEGABYTE = 1 << 20


def resident() -> int:
    """Anonymous memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


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
