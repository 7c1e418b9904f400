"""A CTranslate2 file written byte by byte reads back."""

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.zoo import ctranslate2


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(name: str, values: np.ndarray, kind: int) -> bytes:
    shape = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
    return string(name) + shape + struct.pack("<BI", kind, values.nbytes) + values.tobytes()


def test_variables_by_name(tmp_path: Path) -> None:
    half = np.arange(6, dtype=np.float16).reshape(2, 3)
    count = np.array(5, dtype=np.int16)
    path = tmp_path / "model.bin"
    path.write_bytes(
        struct.pack("<I", 6)
        + string("WhisperSpec")
        + struct.pack("<II", 3, 2)
        + variable("a/weight", half, 4)
        + variable("heads", count, 2)
    )
    stored = ctranslate2.read(path)
    np.testing.assert_array_equal(stored["a/weight"], half)
    assert stored["a/weight"].dtype == np.float16
    assert int(stored["heads"]) == 5


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<I", 99))
    with pytest.raises(ValueError, match="format 99, not 6"):
        ctranslate2.read(path)
