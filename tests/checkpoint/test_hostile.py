"""Files that lie: an error that names file and tensor, before anything is taken for weights."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import phiquant
from phiquant import CheckpointError, PhiConfig
from phiquant.checkpoint.header import FIELDS
from tests.checkpoint.support import Entry, Holder, RawFile, kinds, stored
from tests.support import TiedModel, run_python

HEADER = "_weight_header"
LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1
Damage = Callable[[RawFile], None]


def field(place: int, value: int) -> Damage:
    return lambda file: file.put(HEADER, place, value, "q")


def numbers(change: Callable[[list[int]], list[int]]) -> Damage:
    return lambda file: file.put_numbers(HEADER, change(file.numbers(HEADER)))


def without(plane: str) -> Damage:
    return lambda file: file.entries.pop(f"_weight_{plane}") and None


def more(plane: str) -> Damage:
    return lambda file: file.entries.update({f"_weight_{plane}": Entry("U8", [4], bytes(4))})


def entry(plane: str, **said: Any) -> Damage:
    def damage(file: RawFile) -> None:
        for name, value in said.items():
            setattr(file.entries[f"_weight_{plane}"], name, value)

    return damage


def rows(plane: str, step: int) -> Damage:
    """A plane with more or fewer rows, and said to be so."""

    def damage(file: RawFile) -> None:
        of = file.entries[f"_weight_{plane}"]
        width = len(of.data) // of.shape[0]
        of.shape = [of.shape[0] + step, *of.shape[1:]]
        of.data = (of.data + bytes(width * max(step, 0)))[: width * of.shape[0]]

    return damage


def put(plane: str, place: int, value: int, number: str) -> Damage:
    return lambda file: file.put(f"_weight_{plane}", place, value, number)


WORD = "scale: a word is not a normal fp16 number"
OUTSIDE = "remainder: block 0 is not inside of the remainder plane"
# The kind of weight, how its file is damaged, and what the error says after file and tensor.
DAMAGE: dict[str, tuple[str, Damage, str]] = {
    "no header": ("4+4", without("header"), "its header is missing"),
    "empty header": ("4+4", numbers(lambda n: []), "header: expected a vector of torch.int64"),
    "header of floats": ("4+4", entry("header", dtype="F64"), "header: expected a vector of torch"),
    "header of no dimension": (
        "4+4", entry("header", shape=[], data=bytes(8)), "header: expected a vector of torch.int64",
    ),
    "header of rows": (
        "4+4", entry("header", shape=[2, 8]), "header: expected a vector of torch.int64",
    ),
    "header too short": ("4+4", numbers(lambda n: n[:FIELDS]), "header: expected 14 numbers and"),
    "header too long": ("4+4", numbers(lambda n: n + [1] * 99), "header: expected 14 numbers and"),
    "version": ("4+4", field(0, 2), "header: format version must be 1, got 2; a newer phiquant"),
    "index bits": ("4+4", field(1, 5), "plane 'index': expected torch.uint8 of shape (8, 160)"),
    "deviation bits": ("4+4", field(2, 8), "the plane 'deviation_low' is missing"),
    "no deviation": ("4+4", field(2, 0), "has planes too many: ['deviation']"),
    "group size": ("4+4", field(3, 32), "plane 'index': expected torch.uint8 of shape (8, 112)"),
    "group size 0": ("4+4", field(3, 0), "header: group_size must be one of"),
    "huge group size": ("4+4", field(3, HIGHEST), "header: group_size must be one of"),
    "grid": ("4+4", field(4, -1), "header: grid must be from 0 to 1"),
    "exponent": ("4+4", field(5, LOWEST), "header: exponent must be from -112 to 112"),
    "dtype": ("4+4", field(8, 17), "header: dtype must be from 0 to 2, got 17"),
    "transposed": ("4+4", field(9, 1), "plane 'index': expected torch.uint8 of shape (200, 32)"),
    "column dimensions": ("4+4", field(10, 9), "header: shape (8, 200) with 9 dimensions"),
    "exact, says the header": ("4+4", field(11, 8), "the plane 'remainder' is missing"),
    "lossy, says the header": ("many blocks", field(11, 0), "header: has_checksum: only a weight"),
    "remainder": (
        "many blocks", numbers(lambda n: [*n[:11], n[11] + 1, *n[12:]]),
        "plane 'remainder': expected torch.uint8 of shape",
    ),
    "exceptions": ("4+4", field(12, 2), "the plane 'exceptions' is missing"),
    "checksum": ("4+4", field(13, 1), "header: has_checksum: only a weight with a remainder"),
    "more rows": ("4+4", field(14, 9), "plane 'index': expected torch.uint8 of shape (9, 128)"),
    "no rows": ("4+4", field(14, 0), "header: shape (0, 200) with"),
    "negative rows": ("4+4", field(14, -8), "header: shape (-8, 200) with"),
    "absurd rows": ("4+4", field(14, 1 << 50), "plane 'index': expected torch.uint8 of shape"),
    "absurd columns": ("4+4", field(15, 1 << 58), "plane 'index': expected torch.uint8"),
    "absurd size": ("4+4", numbers(lambda n: [*n[:14], 1 << 40, 1 << 40]), "has more weights than"),
    "another dimension": ("4+4", numbers(lambda n: [*n, 1]), "plane 'index': expected torch.uint8"),
    "no index": ("4+4", without("index"), "the plane 'index' is missing"),
    "no scale": ("4+4", without("scale"), "the plane 'scale' is missing"),
    "no offsets": ("many blocks", without("offsets"), "the plane 'offsets' is missing"),
    "no checksum": ("many blocks", without("checksum"), "the plane 'checksum' is missing"),
    "a plane more": ("4+4", more("remainder"), "has planes too many: ['remainder']"),
    "an empty plane": (
        "4+4", entry("deviation", shape=[8, 0], data=b""), "plane 'deviation': expected torch",
    ),
    "a plane of no dimension": (
        "4+4", entry("scale", shape=[], data=b"12"), "plane 'scale': expected torch.int16 of shape",
    ),
    "a plane of another dtype": ("4+4", entry("index", dtype="I8"), "got another dtype of shape"),
    "scales as fp16": ("4+4", entry("scale", dtype="F16"), "got another dtype of shape (8, 4)"),
    "a plane of another order": (
        "4+4", entry("index", shape=[128, 8]), "expected torch.uint8 of shape (8, 128), got torch",
    ),
    "truncated plane": ("4+4", rows("index", -1), "of shape (8, 128), got torch.uint8 of shape (7"),
    "extended plane": ("4+4", rows("scale", 1), "of shape (8, 4), got torch.int16 of shape (9, 4)"),
    "starts for every block": (
        "many blocks", entry("starts", shape=[120], data=bytes(960)),
        "plane 'starts': expected torch.int64 of shape (4,), got torch.int64 of shape (120,)",
    ),
    "checksum too long": (
        "many blocks", entry("checksum", shape=[17], data=bytes(17)), "plane 'checksum': expected",
    ),
    "scale NaN": ("4+4", put("scale", 5, 0x7E00, "H"), WORD),
    "scale infinity": ("4+4", put("scale", 5, 0xFC00, "H"), WORD),
    "scale zero": ("4+4", put("scale", 5, 0, "H"), WORD),
    "bend of golden": ("golden", put("scale", 5, 0x3C02, "H"), WORD),
    "start near 2^63": ("many blocks", put("starts", 0, HIGHEST, "q"), OUTSIDE),
    "start below zero": ("many blocks", put("starts", 0, LOWEST, "q"), OUTSIDE),
    "blocks not in order": ("many blocks", put("offsets", 9, 0, "H"), "offsets: a block begins"),
    "block not at the front": ("one block", put("starts", 0, 1, "q"), "starts: the first block"),
    "exception beyond": (
        "special bfloat16", put("exceptions", -2, HIGHEST, "q"),
        "exceptions: a place is not among the 3600 weights",
    ),
    "exception before": ("special bfloat16", put("exceptions", 0, -1, "q"), "exceptions: expected"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_lies_are_named_with_file_and_tensor(tmp_path: Path, what: str) -> None:
    kind, damage, message = DAMAGE[what]
    tensor, path = kinds()[kind](), tmp_path / "bad.safetensors"
    file = stored(path, tensor)
    if damage.__qualname__.startswith("put"):
        last = len(file.entries.get("_weight_exceptions", Entry("", [], b"")).data) // 8
        damage = at_the_end(damage, last) if what == "exception beyond" else damage
    damage(file)
    file.write(path)
    expected = re.escape(f"{path}: weight: ") + ".*" + re.escape(message)
    model = Holder(weight=torch.zeros(tensor.shape))
    with pytest.raises(CheckpointError, match=expected):
        phiquant.load(model, path)
    assert model.weight.count_nonzero() == 0
    with pytest.raises(CheckpointError, match=expected):
        phiquant.open(path).read("weight")


def at_the_end(damage: Damage, count: int) -> Damage:
    return lambda file: file.put("_weight_exceptions", count - 2, HIGHEST, "q")


def test_remainders_of_two_encodings_are_found_by_the_kernel(tmp_path: Path) -> None:
    """All planes fit, and no small plane is wrong: what reads them says so."""
    path = tmp_path / "bad.safetensors"
    file = stored(path, kinds()["many blocks"]())
    file.entries["_weight_index"].data = file.entries["_weight_index"].data[::-1]
    file.write(path)
    model = phiquant.load(Holder(weight=torch.zeros(40, 1100)), path)
    with pytest.raises(ValueError, match=r"weight: remainder: block \d+ "):
        model.weight.dequantize()
    with pytest.raises(ValueError, match=r"weight: remainder: block \d+ "):
        nn.functional.linear(torch.ones(1, 1100, dtype=torch.bfloat16), model.weight)


def test_wrong_bits_that_fit_are_found_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    file = stored(path, kinds()["special bfloat16"]())
    pairs = file.numbers("_weight_exceptions")
    file.put("_weight_exceptions", 1, pairs[1] ^ (1 << 31), "q")
    file.write(path)
    model = phiquant.load(Holder(weight=torch.zeros(6, 600)), path)
    assert phiquant.verify(model).failed == {"weight": "the checksum of the decoded bits differs"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"phiquant.format": "2"}, "phiquant.format: must be 1, got '2'; a newer phiquant"),
        ({"phiquant.weights": "2"}, "phiquant.weights: expected 2 compressed weights, found 1"),
        ({"phiquant.weights": "x"}, "phiquant.weights: expected x compressed weights, found 1"),
        ({"phiquant.tied": "{"}, "phiquant.tied: is not JSON"),
        ({"phiquant.tied": "[" * 100_000}, "phiquant.tied: is not JSON"),
        ({"phiquant.tied": "9" * 10_000}, "phiquant.tied: is not JSON"),
        ({"phiquant.tied": "[]"}, "phiquant.tied: expected names, got []"),
        ({"phiquant.tied": '{"weight": "weight"}'}, "'weight' cannot be tied to 'weight'"),
        ({"phiquant.tied": '{"a": "b"}'}, "'a' cannot be tied to 'b'"),
        ({"phiquant.tied": '{"a": "b", "b": "weight"}'}, "'a' cannot be tied to 'b'"),
        ({"phiquant.tied": '{"a": 3}'}, "'a' cannot be tied to 3"),
        ({"phiquant.tied": '{"a": ["weight"]}'}, "'a' cannot be tied to ['weight']"),
        ({"phiquant.tied": '{"a": "weight", "a": "b"}'}, "the key 'a' is there twice"),
        ({"phiquant.tied": '{"__class__.x": "weight"}'}, "the model has no __class__.x"),
    ],
    ids=lambda value: ascii(value)[:60] if isinstance(value, dict) else "",
)
def test_metadata_that_lies(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "bad.safetensors"
    file = stored(path, kinds()["4+4"]())
    file.metadata |= metadata
    file.write(path)
    with pytest.raises(CheckpointError, match="bad.safetensors: .*" + re.escape(message)):
        phiquant.load(Holder(weight=torch.zeros(8, 200)), path)


NAMES = [
    "__class__.weight", "a..b.weight", "weight.weight", ".weight", "weight.", "..", "", " ",
    "__init__", "forward", "_parameters.weight", "_modules", "training", "../../x", "\0",
    "weight\n", "weight", "a.__dict__.b", "nan", "‮x",
]  # fmt: skip


@pytest.mark.parametrize("plain", [False, True], ids=["compressed", "plain"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_lead_nowhere_in_a_module(tmp_path: Path, name: str, plain: bool) -> None:
    path = tmp_path / "bad.safetensors"
    file = stored(path, kinds()["4+4"](), "weight")
    head, dot, leaf = name.rpartition(".")
    if plain:
        file.entries = {name: Entry("F32", [8, 200], bytes(6400))}
        file.metadata.clear()
    else:
        file.entries = {
            f"{head}{dot}_{leaf}{key.removeprefix('_weight')}": of
            for key, of in file.entries.items()
        }
    file.write(path)
    model = nn.Sequential(nn.Linear(3, 3))
    before = {key: dict(vars(module)) for key, module in model.named_modules()}
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: "):
        phiquant.load(model, path)
    assert {key: dict(vars(module)) for key, module in model.named_modules()} == before
    assert type(model) is nn.Sequential


def test_a_weight_that_is_compressed_and_plain(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    file = stored(path, kinds()["4+4"]())
    file.entries["weight"] = Entry("F32", [8, 200], bytes(6400))
    file.write(path)
    with pytest.raises(CheckpointError, match="weight: is there compressed and plain as well"):
        phiquant.open(path)


def test_a_weight_that_is_gone_with_all_its_planes(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    phiquant.save(Holder(a=kinds()["4+4"](), b=kinds()["4+4"]()), path)
    file = RawFile.read(path)
    file.entries = {key: of for key, of in file.entries.items() if not key.startswith("_a_")}
    file.write(path)
    with pytest.raises(CheckpointError, match="expected 2 compressed weights, found 1"):
        phiquant.open(path)


def sharded(folder: Path) -> list[Path]:
    model = TiedModel()
    phiquant.quantize_(model, PhiConfig(exact=True))
    phiquant.save(model, folder, max_shard_size="30KB")
    return sorted(folder.glob("*.safetensors"))


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    sharded(tmp_path)[1].unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: names files that are not there"):
        phiquant.open(tmp_path)


def test_a_shard_of_another_place(tmp_path: Path) -> None:
    files = sharded(tmp_path)
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"is in .*model-00001.* already; one must go"):
        phiquant.open(tmp_path)


def test_a_tied_name_that_is_stored_as_well(tmp_path: Path) -> None:
    last = sharded(tmp_path)[-1]
    file = RawFile.read(last)
    file.entries["head.weight"] = Entry("F32", [1], bytes(4))
    file.write(last)
    with pytest.raises(CheckpointError, match=r"'head\.weight' cannot be tied to 'embed\.w"):
        phiquant.open(tmp_path)


def test_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    octets = stored(path, kinds()["4+4"]()).octets()
    for size in (0, 1, 7, 8, 9, 100, len(octets) // 2, len(octets) - 1):
        path.write_bytes(octets[:size])
        with pytest.raises(CheckpointError, match=r"bad\.safetensors: not a whole"):
            phiquant.open(path)


ABSURD = """
import resource, struct, sys, torch, phiquant
from pathlib import Path
from tests.checkpoint.support import Entry, Holder, RawFile, kinds, stored
path = Path({path!r})
file = stored(path, kinds()["many blocks"]())
whole = {{key: (e.dtype, list(e.shape), e.data) for key, e in file.entries.items()}}
phiquant.open(path).read("weight").dequantize()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
refused = 0
for place in range(14 + 2):
    for value in (1 << 31, 1 << 40, 1 << 48, 1 << 58, (1 << 63) - 1, -(1 << 63), -1):
        file.entries = {{key: Entry(*said) for key, said in whole.items()}}
        file.put("_weight_header", place, value, "q")
        file.write(path)
        try:
            phiquant.open(path).read("weight")
        except phiquant.CheckpointError:
            refused += 1
print(refused)
"""


def test_absurd_numbers_take_no_memory(tmp_path: Path) -> None:
    """With 64 MB left to the process, every one is an error about the file; exponent -1 is none."""
    run = run_python(ABSURD.format(path=str(tmp_path / "a.safetensors")))
    assert run.stdout.strip() == str(16 * 7 - 1), run.stderr[-1000:]


def test_a_nested_header_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"__metadata__":' + b"[" * 5_000_000
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    run = run_python(
        f"""
        import phiquant
        try:
            phiquant.open({str(path)!r})
        except phiquant.CheckpointError as error:
            print(str(error)[-200:])
        """
    )
    assert "recursion" in run.stdout.lower(), (run.returncode, run.stderr[-500:])


def test_a_long_index_takes_no_time(tmp_path: Path) -> None:
    names = {f"layers.{i}.weight": "a.safetensors" for i in range(100_000)}
    phiquant.save(Holder(weight=torch.ones(1)), tmp_path / "a.safetensors")
    text = json.dumps({"weight_map": names})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight: is not in a\.safetensors"):
        phiquant.open(tmp_path)
