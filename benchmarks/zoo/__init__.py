"""Real models and texts that install from package registries, so that results reproduce anywhere.

Every model module offers `load()`, which returns the fp32 model in eval mode, and
`evaluate(model)`, which returns its end metrics as a dict of floats. Metrics which compare with
the original load it themselves. A missing package raises `MissingPackage` naming the pip install
that brings it; `requirements.txt` beside this file lists them all.
"""

from __future__ import annotations

import importlib
from types import ModuleType

MODELS = ("minilm", "antiberty", "whisper", "efficientnet", "crepe", "smollm2")


def model(name: str) -> ModuleType:
    """The module of one model. Raises `ValueError` for a name outside `MODELS`."""
    if name not in MODELS:
        raise ValueError(f"no model {name!r} in the zoo; there are {', '.join(MODELS)}")
    return importlib.import_module(f"{__name__}.{name}")
