"""What is compiled, from which sources and with which flags."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from build_support.switches import BuildError, Switch, cuda_architectures, sanitizers
from build_support.tools import find_cxx, find_nvcc
from build_support.torch_install import REQUIREMENT, TorchInstall, find_torch

ROOT = Path(__file__).resolve().parent.parent
# The oldest torch whose stable ABI the binaries use: 2.11, one byte a field.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000ULL", "-DTORCH_STABLE_ONLY"]


@dataclass(frozen=True)
class Recipe:
    """One shared library: how each source is compiled, how the objects are linked."""

    compiler: list[str]
    sources: list[Path]
    compile_flags: list[str]
    link_flags: list[str]


def cpu_sources() -> list[Path]:
    return _sources("register_cpu.cpp", "cpu/*.cpp")


def cuda_sources() -> list[Path]:
    return _sources("register_cuda.cpp", "cuda/*.cu")


def cpu_recipe() -> Recipe:
    """How phiquant/_C.abi3.so is built; BuildError says what is missing."""
    compiler, torch = find_cxx(), _need_torch()
    common = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]
    flags = [*common, *STABLE_ABI, *_cpp_optimisation(), *_includes(torch, "-isystem")]
    link = [*_shared_flags(), *_torch_libraries(torch, "-Wl,"), *_sanitize_flags()]
    return Recipe(compiler, _need(cpu_sources(), "csrc/register_cpu.cpp"), flags, link)


def cuda_recipe() -> Recipe:
    """How phiquant/_C_cuda.abi3.so is built.

    A torch without CUDA has the headers too, so a forced build goes on with it.
    """
    sources = _need(cuda_sources(), "csrc/register_cuda.cpp")
    torch = _need_torch()
    if torch.cuda is None and Switch.read("PHIQUANT_BUILD_CUDA") is not Switch.FORCED:
        raise BuildError(f"torch {torch.version} is a build without CUDA")
    host = ["-ccbin", find_cxx()[0], "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-DUSE_CUDA", *host, *STABLE_ABI]
    flags += [*_gencode(), *_threads(), *_includes(torch, "-isystem")]
    link = ["-shared", *host, *_torch_libraries(torch, "-Xlinker=")]
    return Recipe([find_nvcc()], sources, flags, link)


def _sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in (ROOT / "csrc").glob(pattern))


def _need(sources: list[Path], binding: str) -> list[Path]:
    if ROOT / binding not in sources:
        raise BuildError(f"{binding} is missing from the source tree")
    return sources


def _need_torch() -> TorchInstall:
    torch = find_torch()
    if torch is None:
        raise BuildError(f"no {REQUIREMENT} to build against; install it first")
    return torch


def _cpp_optimisation() -> list[str]:
    if not sanitizers():
        return ["-O3"]
    return ["-O1", "-g", "-fno-omit-frame-pointer", *_sanitize_flags()]


def _sanitize_flags() -> list[str]:
    return [f"-fsanitize={sanitizers()}", "-fno-sanitize-recover=all"] if sanitizers() else []


def _includes(torch: TorchInstall, system_flag: str) -> list[str]:
    api = torch.include / "torch/csrc/api/include"
    return [f"-I{ROOT / 'csrc/include'}", system_flag, str(torch.include), system_flag, str(api)]


def _shared_flags() -> list[str]:
    return ["-dynamiclib"] if sys.platform == "darwin" else ["-shared"]


def _torch_libraries(torch: TorchInstall, linker_prefix: str) -> list[str]:
    # Only dlopen looks at them, so the linker would drop them as unneeded and the load would fail.
    keep = [] if sys.platform == "darwin" else [f"{linker_prefix}--no-as-needed"]
    return [f"-L{torch.lib}", *keep, "-ltorch", "-ltorch_cpu", "-lc10"]


def _gencode() -> list[str]:
    names = cuda_architectures()
    # Hopper's own instructions, which csrc/cuda/many_rows.cu needs, are in sm_90a alone; every
    # device of compute capability 9.0 runs it.
    targets = ["90a" if name == "90" else name for name in names]
    binaries = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in targets]
    # PTX of the last one, for devices newer than every binary.
    return [*binaries, f"-gencode=arch=compute_{names[-1]},code=compute_{names[-1]}"]


def _threads() -> list[str]:
    """A file's architectures at once where cores are many: one after another they take minutes.

    Each needs memory of its own; MAX_JOBS, which is set where that is short, forbids it.
    """
    threads = min(len(cuda_architectures()), (os.cpu_count() or 1) // 4)
    return [f"--threads={threads}"] if threads > 1 and not os.environ.get("MAX_JOBS") else []
