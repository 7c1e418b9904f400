"""A GGUF file written byte by byte reads back."""

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.zoo import gguf


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def block_file(path: Path, kind: int, shape: tuple[int, ...], payload: bytes) -> Path:
    metadata = string("answer") + struct.pack("<II", 4, 42)
    metadata += string("words") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bc")
    extents = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    entry = string("w") + struct.pack("<I", len(shape)) + extents + struct.pack("<IQ", kind, 0)
    head = struct.pack("<IIQQ", 0x46554747, 3, 1, 2) + metadata + entry
    path.write_bytes(head + bytes(-len(head) % 32) + payload)
    return path


HALF = np.array([0.5], np.float16).tobytes()
ONE = np.array([1.0], np.float16).tobytes()
NIBBLES = bytes(range(16))  # the low nibbles are 0..15, the high ones 0


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        (0, np.arange(32, dtype=np.float32).tobytes(), np.arange(32)),
        (1, np.arange(32, dtype=np.float16).tobytes(), np.arange(32)),
        (8, HALF + np.arange(-16, 16, dtype=np.int8).tobytes(), np.arange(-16, 16) / 2),
        (2, HALF + NIBBLES, np.array([*(i / 2 - 4 for i in range(16)), *[-4] * 16])),
        (3, HALF + ONE + NIBBLES, np.array([*(i / 2 + 1 for i in range(16)), *[1] * 16])),
    ],
    ids=["F32", "F16", "Q8_0", "Q4_0", "Q4_1"],
)
def test_every_tensor_type(tmp_path: Path, kind: int, payload: bytes, expected: np.ndarray) -> None:
    metadata, tensors = gguf.read(block_file(tmp_path / "m.gguf", kind, (2, 16), payload))
    assert metadata == {"answer": 42, "words": ["a", "bc"]}
    decoded = tensors["w"].decode()
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected.reshape(2, 16))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"not a model at all" * 4)
    with pytest.raises(ValueError, match="not a GGUF file"):
        gguf.read(path)
    with pytest.raises(ValueError, match="GGUF type 12"):
        gguf.read(block_file(path, 12, (1, 32), bytes(64)))
