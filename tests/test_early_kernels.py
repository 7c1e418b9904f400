"""Kernels of Inductor's begin early only where that was asked for, and then wait first."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import config
from torch._inductor.codegen.triton import TritonKernel
from torch._inductor.utils import IndentedBuffer

from phiquant import early_kernels as early

ADMIT, WAIT = TritonKernel.GDC_LAUNCH, TritonKernel.GDC_WAIT
PLAIN = ["a = 1", "    b = tl.load(p)", "tl.store(q, b)"]
BODY = [PLAIN[0], f"    {WAIT}", PLAIN[1], f"    {WAIT}", f"    {ADMIT}", PLAIN[2]]


@pytest.fixture(autouse=True)
def replaced() -> Iterator[None]:
    """Each test installs anew, over Inductor's own."""
    theirs = TritonKernel._filter_pdl
    early._installed.cache_clear()
    yield
    TritonKernel._filter_pdl = theirs  # type: ignore[method-assign]
    early._installed.cache_clear()


def filtered(on: bool = True) -> list[str]:
    """What becomes of a kernel's body; `on`: the option holds, on a device that knows it."""
    kernel = SimpleNamespace(GDC_WAIT=WAIT, GDC_LAUNCH=ADMIT, _enable_pdl_codegen=lambda: on)
    code = IndentedBuffer()
    code._lines = list(BODY)
    TritonKernel._filter_pdl(kernel, code)  # type: ignore[arg-type]
    return list(map(str, code._lines))


def test_a_kernel_admits_the_next_one_and_waits_before_anything_else() -> None:
    with early.early_kernels():
        assert filtered() == [ADMIT, WAIT, *PLAIN]


def test_others_stay_as_inductor_writes_them() -> None:
    wanted = [PLAIN[0], f"    {WAIT}", PLAIN[1], f"    {ADMIT}", PLAIN[2]]
    assert filtered() == wanted
    with early.early_kernels():
        assert filtered(on=False) == wanted
    assert filtered() == wanted


def test_it_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), early.early_kernels():
        raise ZeroDivisionError
    assert filtered()[0] != ADMIT


def test_compiled_code_is_found_by_what_it_was_compiled_for() -> None:
    settings: Any = torch.compiler.config
    before = settings.cache_key_tag
    with settings.patch(cache_key_tag="theirs"):
        with early.early_kernels():
            assert settings.cache_key_tag == "theirsphiquant-early-kernels"
        assert settings.cache_key_tag == "theirs"
    assert settings.cache_key_tag == before


def test_who_waits_for_all() -> None:
    assert early.all_wait()
    with config.patch(early.options()):
        assert not early.all_wait()
        with early.early_kernels():
            assert early.all_wait()


@pytest.mark.parametrize("missing", ["_filter_pdl", "GDC_WAIT", "_enable_pdl_codegen"])
def test_an_inductor_without_the_method(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TritonKernel, missing)
    assert early.options() == {}
    with early.early_kernels():
        assert not early._active.get()
        with config.patch({"triton.enable_pdl": True}):
            assert not early.all_wait()
