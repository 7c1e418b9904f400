"""Lets transformers load a compressed checkpoint when nobody wrote ``import phiquant``.

torch calls :func:`arm` at the end of its own import (the entry point group ``torch.backends``),
unless TORCH_DEVICE_BACKEND_AUTOLOAD=0. It is a module of its own because importing the package
imports torch, which is not there yet. Nothing is imported here before transformers' registry of
quantizers is, and nothing is ever raised.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"


def arm() -> None:
    """Import phiquant as soon as transformers is about to import its registry of quantizers."""
    if "phiquant" not in sys.modules and not any(isinstance(f, _Waiting) for f in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Waits for one import, once, and leaves every other import alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            importlib.import_module("phiquant")
        except Exception as error:
            warnings.warn(
                f"phiquant is installed, but cannot be imported, so transformers does not know its "
                f"checkpoints: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        return importlib.util.find_spec(fullname)  # through the finder that phiquant put there
