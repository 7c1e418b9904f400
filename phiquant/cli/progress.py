"""How far a long job is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

_PAUSE = 10.0  # seconds between two lines


class Progress:
    """Counts bytes of originals.

    Args:
        shown: whether to show anything.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self._bar: Any = None
        self._total = self._done = self._skipped = 0
        self._begun = self._said = time.monotonic()

    def begin(self, total: int) -> None:
        """Say how many bytes there are; what is skipped from here on was done before."""
        self._total, self._begun = total, time.monotonic()
        if self.shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="phiquant: compress")

    def skip(self, count: int) -> None:
        """These were done by an earlier run, which says nothing about how fast this one is."""
        self._skipped += count
        if self._bar is not None:
            self._bar.initial += count
        self.update(count)

    def update(self, count: int) -> None:
        """That many more bytes are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self.shown and time.monotonic() - self._said >= _PAUSE:
            self._said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        elapsed, fresh = time.monotonic() - self._begun, self._done - self._skipped
        left = elapsed / fresh * (self._total - self._done) if fresh else 0.0
        share = self._done / max(1, self._total)
        return (
            f"phiquant: {share:.0%}, {size(self._done)} of {size(self._total)}, "
            f"{_duration(left) if fresh else 'unknown time'} left"
        )


def size(count: float) -> str:
    """Bytes for people.

    >>> size(310_000_000)
    '310.0 MB'
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
