"""setuptools commands that build the native modules, or go on without them."""

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

from build_support import ninja_build
from build_support.recipe import ROOT, Recipe, cpu_recipe, cpu_sources, cuda_recipe, cuda_sources
from build_support.switches import BuildError, Switch


class NativeModule(Extension):
    """A shared library of torch operators: no Python symbols, so one serves every Python."""

    def __init__(
        self, name: str, variable: str, sources: list[Path], recipe: Callable[[], Recipe]
    ) -> None:
        super().__init__(name, [path.relative_to(ROOT).as_posix() for path in sources])
        self.variable = variable
        self.switch = Switch.read(variable)
        self.recipe = recipe
        self.optional = self.switch is not Switch.FORCED

    @property
    def wanted(self) -> bool:
        return bool(self.sources) if self.switch is Switch.AUTO else not self.optional


def native_modules() -> list[Extension]:
    """The modules to try, by the environment switches and the sources that exist."""
    modules = [
        NativeModule("phiquant._C", "PHIQUANT_BUILD_CPU", cpu_sources(), cpu_recipe),
        NativeModule("phiquant._C_cuda", "PHIQUANT_BUILD_CUDA", cuda_sources(), cuda_recipe),
    ]
    return [module for module in modules if module.wanted]


class BuildNative(build_ext):
    """build_ext by ninja; a module that may be left out and cannot be built is reported."""

    def build_extension(self, ext: Extension) -> None:
        assert isinstance(ext, NativeModule)
        output = Path(self.get_ext_fullpath(ext.name))
        output.unlink(missing_ok=True)  # never ship a stale one
        try:
            ninja_build.build(ext.recipe(), output, Path(self.build_temp, ext.name))
        except BuildError as error:
            if ext.switch is Switch.FORCED:
                raise CompileError(f"{ext.variable}=1, but {ext.name}: {error}") from error
            _report(ext, error)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".abi3.so"

    def copy_extensions_to_source(self) -> None:
        """Editable installs: the package folder gets what was built and loses what was not."""
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            here = Path(self.get_ext_filename(ext.name))
            here.unlink(missing_ok=True)
            if built.exists():
                self.copy_file(str(built), str(here))

    def built(self) -> list[Path]:
        paths = (Path(self.build_lib, self.get_ext_filename(ext.name)) for ext in self.extensions)
        return [path for path in paths if path.exists()]


class PlatformWheel(bdist_wheel):
    """cp310-abi3-<platform> with a native module inside, py3-none-any without."""

    def run_command(self, command: str) -> None:
        """Right after the build, before anything asks whether the wheel is pure, see what came."""
        super().run_command(command)
        if command == "build" and not self.get_finalized_command("build_ext").built():
            self.distribution.ext_modules = []
            self.root_is_pure = True

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        if self.root_is_pure:
            return python, abi, platform
        # A free-threaded Python refuses abi3 wheels, though it can load the module.
        free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
        return ("py3", "none", platform) if free_threaded else ("cp310", "abi3", platform)


def _report(ext: NativeModule, error: Exception) -> None:
    print(
        f"phiquant: {ext.name} is left out: {error}\n"
        f"phiquant: the pure Python reference is installed and slower; "
        f"{ext.variable}=1 makes this an error, {ext.variable}=0 silences it.",
        file=sys.stderr,
        flush=True,
    )
