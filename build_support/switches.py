"""The environment switches of a build."""

import os
from enum import Enum


class BuildError(Exception):
    """Why a native module cannot be built."""


class Switch(Enum):
    """PHIQUANT_BUILD_CPU and PHIQUANT_BUILD_CUDA: 0 skips, 1 forces, unset tries."""

    OFF = "0"
    FORCED = "1"
    AUTO = ""

    @classmethod
    def read(cls, variable: str) -> "Switch":
        value = os.environ.get(variable, "").strip()
        try:
            return cls(value)
        except ValueError:
            raise BuildError(f"{variable}={value!r}: use 0 (skip), 1 (force) or unset") from None


def sanitizers() -> str:
    """PHIQUANT_SANITIZE, for example "address,undefined"; empty for an ordinary build."""
    return os.environ.get("PHIQUANT_SANITIZE", "").strip()


def cuda_architectures() -> list[str]:
    """PHIQUANT_CUDA_ARCHS, comma-separated compute capabilities without the dot."""
    return os.environ.get("PHIQUANT_CUDA_ARCHS", "80,89,90,100").split(",")
