"""Which wheel comes out of which environment; each test builds a tiny project of its own."""

import importlib.metadata
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import phiquant
from build_support import backend, recipe, torch_install
from build_support.torch_install import REQUIREMENT, find_torch

ROOT = Path(__file__).resolve().parent.parent
WITH_TORCH = """
#include <torch/csrc/stable/library.h>
int64_t twice(int64_t x) { return 2 * x; }
STABLE_TORCH_LIBRARY(tiny, m) { m.def("twice(int x) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(tiny, CompositeExplicitAutograd, m) {
  m.impl("twice", TORCH_BOX(&twice));
}
"""
WITHOUT_TORCH = 'extern "C" int tiny() { return 1; }'
BROKEN = "int tiny() { return undeclared_name; }"
SWITCHES = ("CXX", "PHIQUANT_BUILD_CPU", "PHIQUANT_BUILD_CUDA", "PHIQUANT_SANITIZE", "CUDA_HOME")
BUILD = "import sys; from build_support import backend; backend.build_wheel(sys.argv[1])"

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)


class Project:
    """A throwaway source tree with phiquant's build and kernels of the test's choice."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md"):
            shutil.copy(ROOT / name, root)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "build_support", root / "build_support", ignore=ignore)
        self.write("phiquant/__init__.py", '__version__ = "1.2.3"\n')
        self.write("csrc/register_cpu.cpp", WITHOUT_TORCH)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def build(self, **variables: str) -> tuple[subprocess.CompletedProcess[str], Path | None]:
        """The finished build and its wheel, if one came out."""
        out = self.root / "dist"
        shutil.rmtree(out, ignore_errors=True)
        env = {name: value for name, value in os.environ.items() if name not in SWITCHES}
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(out)],
            cwd=self.root,
            env=env | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done, next(out.glob("*.whl"), None)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def libraries(wheel: Path | None) -> list[str]:
    assert wheel is not None
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(".so")]


def assert_pure(wheel: Path | None) -> None:
    assert libraries(wheel) == []
    assert wheel is not None
    assert wheel.name == "phiquant-1.2.3-py3-none-any.whl"


@needs_compiler
def test_one_wheel_for_every_python_runs_its_operator(project: Project, tmp_path: Path) -> None:
    project.write("csrc/register_cpu.cpp", WITH_TORCH)
    done, wheel = project.build()
    assert libraries(wheel) == ["phiquant/_C.abi3.so"], done.stdout
    assert wheel is not None
    assert re.fullmatch(r"phiquant-1\.2\.3-cp310-abi3-\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        library = Path(archive.extract("phiquant/_C.abi3.so", tmp_path / "unpacked"))
    assert re.search(rb"\0_?Py[A-Z_]|libpython", library.read_bytes()) is None
    torch.ops.load_library(library)
    assert torch.ops.tiny.twice(21) == 42


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CXX": "/nonexistent/c++"}, "CXX names '/nonexistent/c++'"),
        ({"PATH": ""}, "no C++ compiler on PATH"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure(
    project: Project, variables: dict[str, str], said: str
) -> None:
    done, wheel = project.build(**variables)
    assert_pure(wheel)
    assert said in done.stdout
    assert "PHIQUANT_BUILD_CPU=1 makes this an error" in done.stdout


def test_switched_off_it_says_nothing(project: Project) -> None:
    done, wheel = project.build(PHIQUANT_BUILD_CPU="0")
    assert_pure(wheel)
    assert "left out" not in done.stdout


def test_a_forced_build_without_a_compiler_fails(project: Project) -> None:
    done, wheel = project.build(PHIQUANT_BUILD_CPU="1", CXX="/nonexistent/c++")
    assert done.returncode != 0
    assert wheel is None
    assert "PHIQUANT_BUILD_CPU=1, but phiquant._C: CXX names" in done.stdout


@needs_compiler
def test_a_compile_error_leaves_the_module_out_and_no_stale_one_in(project: Project) -> None:
    assert libraries(project.build()[1]) == ["phiquant/_C.abi3.so"]
    project.write("csrc/register_cpu.cpp", BROKEN)
    done, wheel = project.build()
    assert_pure(wheel)
    assert "undeclared_name" in done.stdout


@needs_compiler
def test_a_forced_build_shows_the_compilers_message(project: Project) -> None:
    project.write("csrc/cpu/kernel.cpp", BROKEN)
    done, wheel = project.build(PHIQUANT_BUILD_CPU="1")
    assert done.returncode != 0
    assert wheel is None
    assert re.search(r"kernel\.cpp:1:\d+: error: .*undeclared_name", done.stdout)


def test_a_module_of_an_editable_install_is_not_packed(project: Project) -> None:
    project.write("phiquant/_C.abi3.so", "left by an editable install")
    assert_pure(project.build(PHIQUANT_BUILD_CPU="0")[1])


@needs_compiler
def test_forced_cuda_without_nvcc_names_what_is_missing(project: Project) -> None:
    project.write("csrc/register_cuda.cpp", WITHOUT_TORCH)
    done, _ = project.build(PHIQUANT_BUILD_CUDA="1", CUDA_HOME="/nonexistent")
    assert done.returncode != 0
    assert "PHIQUANT_BUILD_CUDA=1, but phiquant._C_cuda: CUDA_HOME names" in done.stdout


@needs_compiler
def test_cuda_left_out_keeps_the_cpu_module(project: Project) -> None:
    project.write("csrc/register_cuda.cpp", WITHOUT_TORCH)
    done, wheel = project.build(CUDA_HOME="/nonexistent")
    assert libraries(wheel) == ["phiquant/_C.abi3.so"]
    assert "phiquant._C_cuda is left out" in done.stdout


def test_an_unknown_switch_value_is_an_error(project: Project) -> None:
    done, _ = project.build(PHIQUANT_BUILD_CPU="yes")
    assert done.returncode != 0
    assert "PHIQUANT_BUILD_CPU='yes': use 0 (skip), 1 (force) or unset" in done.stdout


@needs_compiler
def test_sanitizers_reach_the_compiler(project: Project) -> None:
    project.build(PHIQUANT_SANITIZE="undefined")
    (script,) = project.root.glob("build/**/build.ninja")
    assert "-O1 -g -fno-omit-frame-pointer -fsanitize=undefined" in script.read_text()


@needs_compiler
@pytest.mark.parametrize(("cores", "jobs", "threads"), [(16, "", "4"), (4, "", ""), (16, "2", "")])
def test_architectures_are_compiled_at_once_on_many_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, jobs: str, threads: str
) -> None:
    monkeypatch.setattr(recipe, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.delenv("PHIQUANT_CUDA_ARCHS", raising=False)
    monkeypatch.setenv("PHIQUANT_BUILD_CUDA", "1")
    monkeypatch.setenv("MAX_JOBS", jobs)
    flags = recipe.cuda_recipe().compile_flags
    assert [flag for flag in flags if "--threads" in flag] == [f"--threads={threads}"] * bool(
        threads
    )


def test_torch_is_found_where_pips_isolation_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = [entry for entry in sys.path if not Path(entry, "torch").exists()]
    monkeypatch.setattr(sys, "path", visible)
    found = find_torch()
    assert found is not None
    assert found.root == Path(torch.__file__).parent
    assert found.version == torch.__version__


@pytest.mark.parametrize("seen", [True, False])
def test_system_packages_count_only_where_the_environment_sees_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seen: bool
) -> None:
    settings = f"home = /usr/bin\ninclude-system-site-packages = {str(seen).lower()}\n"
    (tmp_path / "pyvenv.cfg").write_text(settings)
    system = site.getsitepackages([str(tmp_path / "system")])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "system"))
    assert (Path(system[0]) in torch_install.site_folders()) is seen


@needs_compiler
@pytest.mark.parametrize("version", [None, "2.10.1+cpu"])
def test_torch_is_asked_for_only_where_none_is_usable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None
) -> None:
    ask: Callable[[], list[str]] = backend._torch_requirement
    monkeypatch.delenv("PHIQUANT_BUILD_CPU", raising=False)
    monkeypatch.setattr(backend, "cpu_sources", lambda: [tmp_path / "register_cpu.cpp"])
    assert ask() == []
    if version:
        headers = tmp_path / "torch/include/torch/csrc/stable"
        headers.mkdir(parents=True)
        (headers / "library.h").touch()
        (tmp_path / "torch/version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
    monkeypatch.setattr(torch_install, "site_folders", lambda: iter([tmp_path]))
    assert ask() == [REQUIREMENT]
    monkeypatch.setenv("PHIQUANT_BUILD_CPU", "0")
    assert ask() == []


def test_the_installed_version_is_the_packages() -> None:
    assert importlib.metadata.version("phiquant") == phiquant.__version__
