"""Importing phiquant is light, and says once what it means if the compiled kernels are missing."""

from __future__ import annotations

import pytest

from tests.support import HIDE_LIBRARY, run_python

TIME_IT = """
import time
import torch, torchao.quantization, torchao.utils
start = time.perf_counter()
import phiquant
print(time.perf_counter() - start)
"""


@pytest.mark.slow
def test_it_takes_less_than_a_third_of_a_second() -> None:
    """Beyond torch and torchao; the best of some runs, because the machine may be busy."""
    best = min(float(run_python(TIME_IT).stdout) for _ in range(3))
    assert best < 0.3


def test_it_touches_neither_transformers_nor_cuda() -> None:
    result = run_python(
        """
        import sys
        import torch, torchao.quantization, torchao.utils
        before = set(sys.modules)
        def refuse(*_):
            raise AssertionError("CUDA was touched")
        torch.cuda._lazy_init = torch._C._cuda_init = refuse
        import phiquant
        assert not torch.cuda.is_initialized()
        heavy = {"transformers", "accelerate", "numpy", "click", "pandas", "scipy"}
        print(sorted(heavy & {name.partition(".")[0] for name in set(sys.modules) - before}))
        """
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_public_names() -> None:
    result = run_python(
        """
        import phiquant
        names = ["PhiConfig", "PhiTensor", "PhiQuantConfig", "Report", "preview", "quantize_"]
        assert all(hasattr(phiquant, name) and name in dir(phiquant) for name in names)
        assert phiquant.__version__.count(".") == 2
        try:
            phiquant.nothing
        except AttributeError as error:
            print(error)
        """
    )
    assert "no attribute 'nothing'" in result.stdout, result.stderr


def test_the_missing_library_is_told_once_with_a_remedy() -> None:
    result = run_python(
        HIDE_LIBRARY
        + """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, phiquant, phiquant.ops, phiquant.tensor
    model = torch.nn.Linear(128, 16)
    phiquant.quantize_(model)
    model(torch.ones(1, 128))
    model(torch.ones(1, 128))
assert not phiquant.ops.compiled
print([str(w.message) for w in caught if "compiled kernels" in str(w.message)])
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("runs without its compiled kernels") == 1
    assert "Remedy: install a C++ compiler and reinstall phiquant" in result.stdout


def test_a_library_that_does_not_load_is_told_too(tmp_path: object) -> None:
    """Made for another platform, say: the reference kernels take over."""
    result = run_python(
        f"""
        import pathlib, warnings
        broken = pathlib.Path({str(tmp_path)!r}) / "_C.abi3.so"
        broken.write_bytes(b"no library")
        with_name = pathlib.Path.with_name
        pathlib.Path.with_name = lambda self, name: (
            broken if name == broken.name else with_name(self, name)
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import phiquant.ops
        messages = [str(w.message) for w in caught if "compiled kernels" in str(w.message)]
        assert len(messages) == 1, messages
        print(phiquant.ops.compiled, messages[0])
        """
    )
    assert result.stdout.startswith("False"), result.stderr
    assert "_C.abi3.so" in result.stdout
    assert "Remedy" in result.stdout
