"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_EVERY = 1 << 24  # bytes of weights between two returns, which take milliseconds each


def _trimmer() -> Callable[[int], object] | None:
    """glibc's malloc_trim, or None where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


class FreedMemory:
    """Returns freed memory while many large tensors come and go.

    glibc keeps what is freed in blocks below 32 MB. After compressing a model weight by weight
    that is several times the compressed size, in holes too scattered to be of use.
    """

    def __init__(self) -> None:
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
