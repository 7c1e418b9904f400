"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_EVERY = 1 << 24  # bytes of weights between two returns, which take milliseconds each
_MMAP_THRESHOLD, _LARGE = -3, 1 << 20  # of glibc's mallopt; bytes
_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4
_MAPS = Path("/proc/self/maps")


def _trimmer() -> Callable[[int], object] | None:
    """glibc's malloc_trim, or None where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


class FreedMemory:
    """Returns freed memory while many large tensors come and go.

    glibc keeps what is freed in blocks below 32 MB. After compressing a model weight by weight
    that is several times the compressed size, in holes too scattered to be of use.

    Args:
        files: that are mapped and were read, whose pages go back, too; they are read again where
            they are used again.
    """

    def __init__(self, files: Sequence[str | os.PathLike[str]] = ()) -> None:
        self.files = [os.path.realpath(file) for file in files]
        self._trim = _trimmer()
        self._waiting = 0

    def add(self, count: int) -> None:
        """Note that ``count`` bytes were freed; now and then, return them."""
        self._waiting += count
        if self._waiting >= _EVERY:
            self.give_back()

    def give_back(self) -> None:
        """Return everything that is free now."""
        self._waiting = 0
        if self._trim is not None:
            self._trim(0)
        if self.files:
            page_out(self.files)


def return_at_once() -> None:
    """Make glibc give every freed block of 1 MB or more back, for the rest of this process.

    It otherwise keeps tens of megabytes, more or fewer as blocks happen to lie. The price is that
    a large block costs page faults whenever it is made.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _LARGE)


def page_out(files: Sequence[str]) -> None:
    """Let go of the pages of mapped files that are in memory, where the system can (Linux).

    Nothing is lost: a page that was written to is kept (or swapped), and the others are read from
    the file again. A file of another owner stays in memory, from where the system may still take
    it when it needs the room.

    Args:
        files: real paths.
    """
    advise = _adviser()
    if advise is None:
        return
    for start, end in _mappings(set(files)):
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGEOUT)


@cache
def _adviser() -> Any:
    if not sys.platform.startswith("linux") or not _MAPS.exists():
        return None
    return getattr(ctypes.CDLL(None), "madvise", None)


def _mappings(files: set[str]) -> Iterator[tuple[int, int]]:
    """Where in memory these files are mapped."""
    for line in _MAPS.read_text(errors="surrogateescape").splitlines():
        place, _, _, _, _, *path = line.split(maxsplit=5)
        if path and path[0] in files:
            start, _, end = place.partition("-")
            yield int(start, 16), int(end, 16)
