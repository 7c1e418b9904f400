"""Which files are a checkpoint's, and what is refused before any tensor is looked at."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from phiquant import CheckpointError
from phiquant.checkpoint.files import INDEX, find_files, open_files
from phiquant.checkpoint.reader import Checkpoint


def small(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors or {"a": torch.ones(2)}, path)
    return path


def write_index(folder: Path, weight_map: Any) -> Path:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder / INDEX


def test_a_file_a_folder_of_one_and_an_index(tmp_path: Path) -> None:
    one = small(tmp_path / "other.safetensors")
    assert find_files(one) == find_files(str(one)) == find_files(tmp_path) == [one]
    main = small(tmp_path / "model.safetensors")
    assert find_files(tmp_path) == [main]
    index = write_index(tmp_path, {"a": "other.safetensors"})
    assert find_files(tmp_path) == find_files(index) == [one]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none: no such file or folder"):
        find_files(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors file"):
        find_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_files([tmp_path / "none.safetensors"])


def test_several_files_need_an_index(tmp_path: Path) -> None:
    small(tmp_path / "a.safetensors")
    small(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"several weight files \(a.safetensors, b.safeten"):
        find_files(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/etc/a.safetensors", "b/a.safetensors", "..", "", "a", "a.bin",
     "./a.safetensors", "..\\a.safetensors", "C:a.safetensors", "C:\\a.safetensors",
     "a\0.safetensors", "\ud800.safetensors", 3, None, ["a.safetensors"], {"a": "b"}],
    ids=ascii,
)  # fmt: skip
def test_an_index_leads_nowhere_else(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    for place in (tmp_path, folder):
        small(place / "a.safetensors")
    write_index(folder, {"a": name})
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors\.index\.json: "):
        find_files(folder)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '"a"', "null", "{}", '{"weight_map": []}', '{"weight_map": 3}',
        '{"weight_map": {}}', "[" * 100_000, '{"weight_map":' * 50_000, "9" * 10_000, "\0",
        '{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}',
        '{"weight_map": {"a": "a.safetensors"}, "weight_map": {"a": "b.safetensors"}}',
    ],
    ids=lambda text: ascii(text[:40]),
)  # fmt: skip
def test_what_is_no_index(tmp_path: Path, text: str) -> None:
    small(tmp_path / "a.safetensors")
    small(tmp_path / "b.safetensors")
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: "):
        Checkpoint(tmp_path)


def test_an_index_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match="not an index of weight files"):
        find_files(tmp_path)


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "a.safetensors", "b": "b.safetensors", "c": "b.safetensors"},
        {"a": "b.safetensors", "b": "a.safetensors"},
    ],
    ids=["one more", "swapped"],
)
def test_an_index_that_does_not_fit_its_files(tmp_path: Path, weight_map: dict[str, str]) -> None:
    for name in "ab":
        small(tmp_path / f"{name}.safetensors", **{name: torch.ones(2)})
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=r"index\.json: [ac]: is not in [ab]\.safetensors"):
        Checkpoint(tmp_path)


def header(text: str | bytes, data: bytes = b"1234", size: int | None = None) -> bytes:
    octets = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(octets) if size is None else size) + octets + data


ENTRY = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "short": b"1234567",
    "no header": header(""),
    "no JSON": header("{"),
    "no object": header("[]"),
    "no UTF-8": header(b'{"\xff":3}'),
    "header beyond the file": header("{}", size=1 << 20),
    "huge header": header("{}", size=(1 << 64) - 1),
    "nested": header("[" * 200_000),
    "nested metadata": header('{"__metadata__":' + '{"a":' * 100_000),
    "metadata of numbers": header('{"__metadata__":{"a":3},"a":' + ENTRY + "}"),
    "key twice": header('{"a":' + ENTRY + ',"a":' + ENTRY.replace("U8", "I8") + "}"),
    "key twice, escaped": header('{"a":' + ENTRY + ',"\\u0061":' + ENTRY + "}"),
    "dtype twice": header('{"a":' + ENTRY.replace("{", '{"dtype":"I8",') + "}"),
    "metadata twice": header('{"__metadata__":{},"__metadata__":{},"a":' + ENTRY + "}"),
    "truncated": header('{"a":' + ENTRY + "}", b"123"),
    "bytes left": header('{"a":' + ENTRY + "}", b"12345"),
    "overlapping": header('{"a":' + ENTRY + ',"b":' + ENTRY + "}"),
    "offsets swapped": header('{"a":' + ENTRY.replace("0,4", "4,0") + "}"),
    "huge offsets": header('{"a":' + ENTRY.replace("0,4", f"0,{(1 << 64) - 1}") + "}"),
    "offset too large": header('{"a":' + ENTRY.replace("0,4", f"0,{1 << 64}") + "}"),
    "negative offset": header('{"a":' + ENTRY.replace("0,4", "-4,0") + "}"),
    "huge shape": header('{"a":' + ENTRY.replace("[4]", f"[{1 << 62},{1 << 62}]") + "}"),
    "another shape": header('{"a":' + ENTRY.replace("[4]", "[5]") + "}"),
    "negative shape": header('{"a":' + ENTRY.replace("[4]", "[-4,-1]") + "}"),
    "shape no list": header('{"a":' + ENTRY.replace("[4]", "4") + "}"),
    "unknown dtype": header('{"a":' + ENTRY.replace("U8", "U9") + "}"),
    "entry is null": header('{"a":null}'),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(DAMAGED[what])
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: not a whole"):
        open_files([path])


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_pipe, "is not a regular file"),
        (Path.mkdir, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.symlink_to(path), "no such file|not a whole"),
    ],
    ids=["pipe", "folder", "device", "link to itself"],
)
def test_what_is_no_file_is_not_read(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises((CheckpointError, FileNotFoundError), match=message):
        Checkpoint([path])
    with pytest.raises((CheckpointError, OSError)):
        Checkpoint(tmp_path)


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    """As the Hub's cache has them."""
    small(tmp_path / "blob")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    assert Checkpoint(tmp_path)["a"].tolist() == [1, 1]


def test_a_key_in_two_files(tmp_path: Path) -> None:
    files = [small(tmp_path / f"{name}.safetensors") for name in "ab"]
    message = rf"b\.safetensors: a is in {re.escape(str(files[0]))} already"
    with pytest.raises(CheckpointError, match=message):
        open_files(files)


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file, said in zip(files, ("1", "2"), strict=True):
        save_file({file.stem: torch.ones(1)}, file, metadata={"phiquant.x": said, "title": said})
    with pytest.raises(CheckpointError, match=r"b\.safetensors: phiquant\.x: differs"):
        open_files(files)
