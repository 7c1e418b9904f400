"""Keep the reference exact where the program has asked torch to flush denormals to zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

GRAIN = 32768  # torch gives a thread at least so many elements


@contextmanager
def denormals_kept() -> Iterator[None]:
    """Compute with denormals on this thread, and restore the mode that was set before.

    torch sets the mode of one thread, and its worker threads inherit it when they start; nothing
    can change theirs. So where any thread flushes, this one computes alone.
    """
    if torch.compiler.is_compiling():
        yield
        return
    here, threads = _flushes(1), torch.get_num_threads()
    if not (here or _flushes(threads)):
        yield
        return
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(here)


def _flushes(threads: int) -> bool:
    """Whether any of ``threads`` threads, this one included, takes denormals for zero.

    Few of the numbers are denormals, because a product of one may take a microsecond.
    """
    probe = torch.zeros(threads, GRAIN if threads > 1 else 1)
    probe[:, ::4096] = 2.0**-149
    return bool(((probe * 1)[:, ::4096] == 0).any())
