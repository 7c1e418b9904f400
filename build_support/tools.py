"""The programs a build needs: C++ compiler, nvcc, ninja."""

import os
import shlex
import shutil
from pathlib import Path

from build_support.switches import BuildError

CXX_NAMES = ("c++", "g++", "clang++")


def find_cxx() -> list[str]:
    """The C++ compiler as a command: $CXX, else the first of c++, g++, clang++ on PATH."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        return [_resolve(chosen[0], "CXX"), *chosen[1:]]
    for name in CXX_NAMES:
        if path := shutil.which(name):
            return [path]
    raise BuildError(f"no C++ compiler on PATH (looked for {', '.join(CXX_NAMES)}); set CXX")


def find_nvcc() -> str:
    """nvcc of $CUDA_HOME, else the one on PATH, else the one in CUDA's usual folder."""
    home = os.environ.get("CUDA_HOME")
    if home:
        return _resolve(str(Path(home, "bin/nvcc")), "CUDA_HOME")
    path = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if path is None:
        raise BuildError("no nvcc on PATH; set CUDA_HOME")
    return path


def find_ninja() -> str:
    """ninja on PATH, else the one of the ninja package."""
    if path := shutil.which("ninja"):
        return path
    try:
        import ninja
    except ImportError:
        raise BuildError("no ninja on PATH; run `pip install ninja`") from None
    return str(Path(ninja.BIN_DIR) / "ninja")


def _resolve(command: str, variable: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise BuildError(f"{variable} names {command!r}, which is not a program that can be run")
    return path
