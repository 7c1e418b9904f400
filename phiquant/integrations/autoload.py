"""Tell transformers and PEFT about phiquant without importing them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Once the module on the left is loaded, the one on the right is imported and changes it.
INTEGRATIONS = {
    "transformers.quantizers.auto": "phiquant.integrations.transformers",
    "peft.tuners.lora.model": "phiquant.integrations.peft",
}


def arm() -> None:
    """Register with every library that is loaded now, and with the others as soon as they are."""
    for awaited in INTEGRATIONS:
        if awaited in sys.modules:
            _register(awaited)
        elif not any(isinstance(f, _Finder) and f.awaited == awaited for f in sys.meta_path):
            sys.meta_path.insert(0, _Finder(awaited))


def _register(awaited: str) -> None:
    """Never raises: it runs inside of somebody's `import transformers`."""
    try:
        importlib.import_module(INTEGRATIONS[awaited])
    except Exception as error:
        library = awaited.partition(".")[0]
        warnings.warn(
            f"phiquant: cannot register with this {library}, which therefore does not know "
            f"phiquant: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


class _Finder(MetaPathFinder):
    """Waits for the import of one module, once, and leaves every other import alone."""

    def __init__(self, awaited: str) -> None:
        self.awaited = awaited

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.awaited:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Loads as ``inner`` does, puts ``inner`` back as the module's loader, then registers."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.inner
        if module.__spec__ is not None:
            module.__spec__.loader = self.inner
        self.inner.exec_module(module)
        _register(module.__name__)
