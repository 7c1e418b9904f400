"""Reading a checkpoint: every kind at every tier, no more than is asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import phiquant
from phiquant import CheckpointError, PhiTensor
from phiquant.checkpoint.stored_planes import planes_of
from phiquant.precision import TIERS
from tests.checkpoint.support import (
    PLANES,
    Holder,
    RawFile,
    kinds,
    same_decodes,
    same_planes,
    stored,
)
from tests.support import run_python

LOSSY = ("index_plane", "scale_plane", "deviation_plane", "deviation_low_plane", "exception_plane")


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    tensor = kinds()[kind]()
    phiquant.save(Holder(weight=tensor), tmp_path / "one.safetensors")
    checkpoint = phiquant.open(tmp_path / "one.safetensors")
    assert list(checkpoint) == ["weight"]
    read = checkpoint.read("weight")
    assert isinstance(read, PhiTensor)
    assert same_planes(read, tensor)
    assert read.deviation_bits == tensor.deviation_bits
    assert (read.shape, read.stride()) == (tensor.shape, tensor.stride())
    assert same_decodes(read, tensor)
    assert checkpoint.stored_bytes("weight") == tensor.stored_bytes
    assert not read.is_exact or read.verify()


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("tier", ["index", "deviation"])
def test_a_tier_is_that_of_the_whole(tmp_path: Path, kind: str, tier: str) -> None:
    tensor = kinds()[kind]()
    phiquant.save(Holder(weight=tensor), tmp_path)
    read = phiquant.open(tmp_path, tier).read("weight")
    assert isinstance(read, PhiTensor)
    whole = tensor.at(0 if tier == "index" else tensor.deviation_bits)
    assert same_planes(read, whole)
    assert read.deviation_bits == whole.deviation_bits
    assert same_decodes(read, whole)
    assert phiquant.open(tmp_path, tier).stored_bytes("weight") == whole.stored_bytes


def test_the_exact_tier_needs_remainders(tmp_path: Path) -> None:
    phiquant.save(Holder(a=kinds()["many blocks"](), b=torch.ones(3)), tmp_path / "a")
    assert phiquant.open(tmp_path / "a", "exact")["a"].verify()
    phiquant.save(Holder(a=kinds()["4+4"]()), tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"a: has no remainder, so it cannot be read at tier"):
        phiquant.open(tmp_path / "b", "exact")
    with pytest.raises(ValueError, match="tier must be one of"):
        phiquant.open(tmp_path / "b", "best")
    assert set(TIERS) == {"index", "deviation", "exact"}


def test_it_is_a_mapping(tmp_path: Path) -> None:
    phiquant.save(Holder(a=kinds()["4+4"](), b=torch.arange(3.0)), tmp_path)
    checkpoint = phiquant.open(tmp_path)
    assert set(checkpoint) == {"a", "b"}
    assert len(checkpoint) == 2
    assert "a" in checkpoint
    assert "c" not in checkpoint
    assert checkpoint["b"].tolist() == [0, 1, 2]
    assert checkpoint.stored_bytes("b") == 12
    with pytest.raises(KeyError, match=r"'c' is not in .*model\.safetensors; it has \['a', 'b'\]"):
        checkpoint["c"]


@pytest.mark.parametrize("kind", ["4+4", "many blocks", "special float16", "golden", "4+0"])
@pytest.mark.parametrize("rows", [slice(2, 5), slice(0, 1), slice(None, None, 2)], ids=str)
def test_rows_are_those_of_the_weight(tmp_path: Path, kind: str, rows: slice) -> None:
    tensor = kinds()[kind]()
    phiquant.save(Holder(weight=tensor), tmp_path)
    part = phiquant.open(tmp_path)["weight"][rows]
    assert same_decodes(part, tensor.dequantize()[rows])


@pytest.mark.parametrize("start", [-(1 << 63), (1 << 63) - 1, -(1 << 40), 1 << 40])
@pytest.mark.parametrize("row", [0, 10, 11])
def test_rows_of_blocks_that_begin_nowhere(tmp_path: Path, row: int, start: int) -> None:
    """Slices narrow the remainder before a kernel looks at it; differences of starts overflow."""
    file = stored(tmp_path / "a.safetensors", kinds()["many blocks"]())
    file.put("_weight_starts", 1, start, "q")
    file.write(tmp_path / "a.safetensors")
    part = phiquant.open(tmp_path)["weight"][row : row + 1]
    if row == 0:  # its blocks are those of the first start
        assert same_decodes(part, kinds()["many blocks"]()[:1])
        return
    with pytest.raises(ValueError, match=r"remainder: block \d+ is not inside"):
        part.dequantize()
    with pytest.raises(ValueError, match=r"remainder: block \d+ is not inside"):
        planes_of("weight", part)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_dtype_that_is_claimed_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = kinds()["special bfloat16"]()._with(dtype=dtype)
    phiquant.save(Holder(weight=tensor), tmp_path)
    read = phiquant.open(tmp_path)["weight"]
    assert (read.dtype, read.stored_dtype) == (dtype, torch.bfloat16)
    assert same_decodes(read, tensor)


def test_planes_at_odd_addresses_are_read(tmp_path: Path) -> None:
    """Other writers do not pad their headers: int64 planes may begin at any byte."""
    tensor = kinds()["special bfloat16"]()
    planes = planes_of("weight", tensor) | {"a": torch.ones(3, dtype=torch.uint8)}
    save_file(planes, tmp_path / "x.safetensors")
    file = RawFile.read(tmp_path / "x.safetensors")
    file.entries = {"a": file.entries.pop("a"), **file.entries}
    file.write(tmp_path / "x.safetensors")
    read = phiquant.open(tmp_path).read("weight")
    assert all(
        plane is None or plane.data_ptr() % plane.itemsize == 0
        for plane in (getattr(read, name) for name in PLANES)
    )
    assert same_planes(read, tensor)


def test_an_index_tier_needs_no_values_of_deeper_planes(tmp_path: Path) -> None:
    """Deeper planes may hold anything: they are not looked at."""
    tensor = kinds()["many blocks"]()
    phiquant.save(Holder(weight=tensor), tmp_path)
    path = tmp_path / "model.safetensors"
    file = RawFile.read(path)
    for plane in ("deviation", "remainder", "offsets", "starts", "checksum"):
        entry = file.entries[f"_weight_{plane}"]
        entry.data = b"\xff" * len(entry.data)
    file.write(path)
    assert same_decodes(phiquant.open(path, "index").read("weight"), tensor.at(0))
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: weight: ")):
        phiquant.open(path).read("weight")


RESIDENT = """
import re, sys, torch, phiquant
from phiquant import PhiTensor, PhiConfig
from tests.checkpoint.support import Holder
path, tier = sys.argv[1], None if sys.argv[2] == "None" else sys.argv[2]
if tier == "make":
    weight = torch.randn(4096, 4096).bfloat16()
    phiquant.save(Holder(weight=PhiTensor.from_hp(weight, PhiConfig(exact=True))), path)
    raise SystemExit

def resident():
    pages = 0
    for block in re.split(r"\\n(?=[0-9a-f]+-)", open("/proc/self/smaps").read()):
        if path in block:
            pages += int(re.search(r"Rss: +(\\d+)", block)[1])
    return pages * 1024

x = torch.ones(1, 4096)
checkpoint = phiquant.open(path, tier)
opened = resident()
if tier is None:
    checkpoint["weight"][1000:1002].dequantize()
else:
    weight = checkpoint.read("weight")
    torch.nn.functional.linear(x, weight._with(dtype=torch.float32))
print(opened, resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts resident pages on Linux")
def test_no_more_pages_are_read_than_needed(tmp_path: Path) -> None:
    """Of a file of 23 MB: two rows take some pages around them in every plane, the index tier 4.25
    bits a weight. How many pages a system maps around the one that was touched differs.
    """
    path = str(tmp_path / "big.safetensors")
    program = "import sys; sys.argv = ['', {!r}, {!r}]\n" + RESIDENT
    assert run_python(program.format(path, "make")).returncode == 0
    size = Path(path).stat().st_size
    opened, rows = map(int, run_python(program.format(path, None)).stdout.split())
    assert size > 20 << 20
    assert opened < 1 << 20
    assert rows < size * 0.4
    _, index = map(int, run_python(program.format(path, "index")).stdout.split())
    wanted = 4096 * 4096 * 4.25 / 8
    assert wanted * 0.95 < index < wanted + (1 << 20)
