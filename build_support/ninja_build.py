"""A Recipe carried out by ninja: parallel, and only what changed."""

import os
import shlex
import subprocess
from pathlib import Path

from build_support.recipe import ROOT, Recipe
from build_support.switches import BuildError
from build_support.tools import find_ninja

RULES = """\
rule compile
  command = {compiler} {compile_flags} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in
rule link
  command = {compiler} $in -o $out {link_flags}
  description = link $out
"""


def build(recipe: Recipe, output: Path, scratch: Path) -> None:
    """Compile into `output`, with objects in `scratch`; BuildError carries the tool's messages."""
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    script = scratch / "build.ninja"
    script.write_text(_script(recipe, output.resolve(), scratch.resolve()), encoding="utf-8")
    command = [find_ninja(), "-f", str(script.resolve())]
    if jobs := os.environ.get("MAX_JOBS"):
        command += ["-j", jobs]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = done.stdout.decode(errors="replace")
    print(log, flush=True)
    if done.returncode != 0:
        raise BuildError(f"compiling failed:\n{log}")


def _script(recipe: Recipe, output: Path, scratch: Path) -> str:
    rules = RULES.format(
        compiler=_command(recipe.compiler),
        compile_flags=_command(recipe.compile_flags),
        link_flags=_command(recipe.link_flags),
    )
    objects = [scratch / f"{path.name}.o" for path in recipe.sources]
    compiles = [
        f"build {_path(obj)}: compile {_path(source)}"
        for source, obj in zip(recipe.sources, objects, strict=True)
    ]
    link = f"build {_path(output)}: link {' '.join(map(_path, objects))}"
    return "\n".join([rules, *compiles, link, ""])


def _command(words: list[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _path(path: Path) -> str:
    text = str(path).replace("$", "$$")
    return text.replace(" ", "$ ").replace(":", "$:")
