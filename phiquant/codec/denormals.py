"""Keep the reference exact where the program has asked torch to flush denormals to zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_kept() -> Iterator[None]:
    """Compute with denormals on this thread, and restore the mode that was set before."""
    if torch.compiler.is_compiling():
        yield
        return
    flushing = (torch.tensor(2.0**-149) * 1).item() == 0
    if not flushing:
        yield
        return
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(True)
