"""Files that safetensors reads, with the planes of one kind together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import phiquant
from phiquant import PhiConfig, PhiTensor
from phiquant.checkpoint import planes_of
from phiquant.checkpoint.serialize import _NAMES, write_tensors


@pytest.mark.parametrize("dtype", [*_NAMES, torch.complex64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 5)], ids=str)
def test_safetensors_reads_it(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = {
        "b": torch.randint(0, 2, (7,)).to(torch.uint8),
        'a "é" \n': torch.randint(0, 2, shape).to(dtype),
        "c": torch.randn(3),
    }
    write_tensors(tensors, tmp_path / "x", {"format": "pt", "note": "ü"})
    read = load_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name], tensor)
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "ü"}


def test_no_tensors(tmp_path: Path) -> None:
    write_tensors({}, tmp_path / "x", {})
    assert load_file(tmp_path / "x") == {}


def test_planes_of_a_kind_lie_together_and_aligned(tmp_path: Path) -> None:
    config = PhiConfig(exact=True)
    weights = {f"{i}.weight": PhiTensor.from_hp(torch.randn(5, 193), config) for i in range(3)}
    tensors = {k: v for name, weight in weights.items() for k, v in planes_of(name, weight).items()}
    tensors["norm"] = torch.ones(3)
    write_tensors(tensors, tmp_path / "x.safetensors", {})
    mapped = phiquant.open(tmp_path / "x.safetensors")
    assert mapped["norm"].data_ptr() % 4 == 0
    ends: dict[str, list[tuple[int, int]]] = {}
    for name, weight in weights.items():
        read = mapped[name]
        assert torch.equal(read, weight)
        for kind, plane in read.planes._asdict().items():  # type: ignore[attr-defined]
            if plane is not None:
                begin = plane.data_ptr()
                assert begin % plane.itemsize == 0
                ends.setdefault(kind, []).append((begin, begin + plane.nbytes))
    for kind, places in ends.items():
        places.sort()
        following = [after[0] for after in places[1:]]
        assert [end for _, end in places[:-1]] == following, kind
