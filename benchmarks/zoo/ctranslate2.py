"""Read the variables of a CTranslate2 model file with numpy alone."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_VERSION = 6


def read(path: Path) -> dict[str, np.ndarray]:
    """Variables by name, as stored. Raises `ValueError` for another version of the format."""
    data = path.read_bytes()
    position = 0

    def scalar(code: str) -> int:
        nonlocal position
        value = struct.unpack_from("<" + code, data, position)[0]
        position += struct.calcsize("<" + code)
        return value

    def string() -> str:
        nonlocal position
        length = scalar("H")
        start, position = position, position + length
        return data[start:position].rstrip(b"\0").decode()

    version = scalar("I")
    if version != _VERSION:
        raise ValueError(f"{path} is CTranslate2 format {version}, not {_VERSION}")
    string(), scalar("I")  # the specification and its revision
    variables = {}
    for _ in range(scalar("I")):
        name = string()
        shape = [scalar("I") for _ in range(scalar("B"))]
        dtype, size = np.dtype(_TYPES[scalar("B")]), scalar("I")
        values = np.frombuffer(data, dtype, size // dtype.itemsize, position)
        variables[name] = values.reshape(shape)
        position += size
    return variables
