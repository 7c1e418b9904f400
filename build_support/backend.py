"""PEP 517 backend: setuptools', except that torch is asked for only where none is installed.

`pip install .` builds in an isolated environment. Naming torch in `build-system.requires` would
download a second, gigabyte-sized torch there, maybe another one than phiquant will run with.
"""

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from build_support.recipe import cpu_sources
from build_support.switches import BuildError, Switch
from build_support.tools import find_cxx
from build_support.torch_install import REQUIREMENT, find_torch

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What the build needs beyond `build-system.requires`."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """As for a wheel."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_requirement()]


def _torch_requirement() -> list[str]:
    return [REQUIREMENT] if _will_compile() and find_torch() is None else []


def _will_compile() -> bool:
    if Switch.read("PHIQUANT_BUILD_CPU") is Switch.OFF or not cpu_sources():
        return False
    try:
        find_cxx()
    except BuildError:
        return False
    return True
