"""How much memory of this process is resident while something runs, anonymous and of files."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phiquant.memory import FreedMemory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_EVERY = 0.002  # seconds between two samples
_FIELDS = {"VmRSS": "all", "RssAnon": "anonymous", "RssFile": "files", "VmHWM": "highest"}


def resident() -> dict[str, int]:
    """Bytes by kind, and the highest of all together so far."""
    found = {}
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name in _FIELDS:
            found[_FIELDS[name]] = int(value.split()[0]) * 1024
    return found


def peak_of(run: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What ``run`` returns, and how far it went above what was resident before, in bytes.

    The peak of all is the kernel's own mark; those of the two kinds, which need not be at the same
    time, come from a thread that looks every few milliseconds.
    """
    gc.collect()
    FreedMemory().give_back()
    _CLEAR.write_text("5")  # the mark starts anew
    before = resident()
    highest = dict(before)
    finished = threading.Event()

    def watch() -> None:
        while not finished.is_set():
            for kind, count in resident().items():
                highest[kind] = max(highest[kind], count)
            time.sleep(_EVERY)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        result = run()
    finally:
        finished.set()
        thread.join()
    after = resident()
    peaks = {
        kind: max(highest[kind], after[kind]) - before[kind] for kind in ("anonymous", "files")
    }
    peaks["all"] = max(highest["highest"], after["highest"], highest["all"]) - before["all"]
    return result, peaks
