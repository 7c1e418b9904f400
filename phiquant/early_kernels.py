"""Inductor's kernels that begin while the kernel ahead ends, and let the next one begin meanwhile.

With its option ``triton.enable_pdl``, on compute capability 9.0 and later, a kernel of Inductor's
waits where it first reads what the node right before it wrote, and admits the next kernel after its
last load. Inside of :func:`early_kernels` it admits the next one first, so that a product gets
ready while a norm or an activation waits and runs. Then it waits before it reads anything: each
kernel has seen the end of all before it, and whoever waits for it has, too.

Inductor has no hook for this, so a method of its ``TritonKernel`` is replaced. Where that, or the
option, is not there, everything stays as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch

_OPTION = "triton.enable_pdl"
_LINES = ("GDC_LAUNCH", "GDC_WAIT")  # a kernel's first, in this order
_active: ContextVar[bool] = ContextVar("phiquant_early_kernels", default=False)


def options() -> dict[str, Any]:
    """What torch.compile is to be told, for code that is only called inside."""
    return {_OPTION: True} if _installed() else {}


def all_wait() -> bool:
    """Whether kernels that Inductor writes now see all results of the kernel ahead of them.

    With the option alone they look at the last buffer that was written before them: of several
    results of one kernel they would wait for that one only.
    """
    from torch._inductor import config

    return _active.get() or not getattr(config.triton, "enable_pdl", False)


@contextmanager
def early_kernels() -> Iterator[None]:
    """What is compiled inside, with :func:`options`, begins early."""
    token = _active.set(_installed())
    try:
        with _own_cache() if _installed() else nullcontext():
            yield
    finally:
        _active.reset(token)


def _own_cache() -> Any:
    """Code whose kernels wait elsewhere is not taken for this, nor this for such code."""
    config: Any = torch.compiler.config
    return config.patch(cache_key_tag=f"{config.cache_key_tag}phiquant-early-kernels")


@functools.cache
def _installed() -> bool:
    """Whether Inductor's method is replaced, which the first call does; not if there is none."""
    try:
        from torch._inductor import config
        from torch._inductor.codegen.triton import TritonKernel
    except ImportError:
        return False
    kernels: Any = TritonKernel
    needed: tuple[tuple[Any, str], ...] = (
        (config.triton, "enable_pdl"),
        (torch.compiler.config, "cache_key_tag"),
        *((kernels, name) for name in ("_filter_pdl", "_enable_pdl_codegen", *_LINES)),
    )
    if not all(hasattr(*each) for each in needed):
        return False
    theirs, first = kernels._filter_pdl, [getattr(kernels, name) for name in _LINES]

    def place(kernel: Any, code: Any) -> None:
        """Where a kernel's body admits and waits, once all of it is written."""
        if _active.get() and kernel._enable_pdl_codegen():
            others = [line for line in code._lines if str(line).strip() not in first]
            code._lines = first + others
        else:
            theirs(kernel, code)

    kernels._filter_pdl = place
    return True
