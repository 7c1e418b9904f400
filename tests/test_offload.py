"""Weights in mapped files: the same values, ties, and memory that the system may take back."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phiquant
from phiquant import PhiConfig, PhiTensor
from phiquant.offload import SMALLEST
from tests.support import TiedModel, run_python

CONFIGS = [
    pytest.param(PhiConfig(deviation_bits=0), id="index"),
    pytest.param(PhiConfig(deviation_bits=8), id="deviation 8"),
    pytest.param(PhiConfig(exact=True), id="exact"),
]


def wide(config: PhiConfig | None = None) -> TiedModel:
    """A model whose weights are large enough for files of their own."""
    torch.manual_seed(0)
    model = TiedModel(words=200, width=256)
    phiquant.quantize_(model, config)
    return model.eval()


def ids() -> Tensor:
    return torch.randint(0, 200, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_on_disk_is_the_same(tmp_path: Path, config: PhiConfig) -> None:
    model = wide(config)
    before, names = copy.deepcopy(model), list(dict(model.named_parameters()))
    expected = model(ids())
    assert phiquant.offload_(model, tmp_path / "new" / "folder") is model
    assert torch.equal(model(ids()), expected)
    assert model.embed.weight is model.head.weight
    assert list(dict(model.named_parameters())) == names
    for mine, its in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, its)
        assert mine.requires_grad == its.requires_grad
    weight = model.head.weight
    assert isinstance(weight, nn.Parameter)
    assert weight.fqn == "embed.weight"
    assert not weight.is_exact or weight.verify()


def test_one_file_for_every_large_weight(tmp_path: Path) -> None:
    model = wide()
    model.plain = nn.Parameter(torch.randn(SMALLEST // 4))
    model.small = nn.Parameter(torch.randn(SMALLEST // 4 - 1))
    expected = model.plain.detach().clone()
    small = model.small
    phiquant.offload_(model, tmp_path)
    names = ["embed.weight", "layers.0.weight", "layers.1.weight", "plain"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{n}.safetensors" for n in names]
    assert torch.equal(model.plain, expected)
    assert model.plain.requires_grad
    assert model.small is small


def test_a_filter_leaves_weights_in_memory(tmp_path: Path) -> None:
    model = wide()
    kept = model.embed.weight
    phiquant.offload_(model, tmp_path, lambda name: name.startswith("layers"))
    assert model.embed.weight is kept
    assert len(list(tmp_path.iterdir())) == 2


def test_a_second_model_does_not_change_the_first(tmp_path: Path) -> None:
    first, second = wide(), wide()
    with torch.no_grad():
        second.embed.weight.copy_(second.embed.weight)
        second.layers[0].weight.index_plane.zero_()
    expected = first(ids()), second(ids())
    phiquant.offload_(first, tmp_path)
    phiquant.offload_(second, tmp_path)
    phiquant.offload_(second, tmp_path)
    assert torch.equal(first(ids()), expected[0])
    assert torch.equal(second(ids()), expected[1])
    assert not torch.equal(*expected)


def test_a_write_stays_in_memory(tmp_path: Path) -> None:
    model = wide()
    phiquant.offload_(model, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    source = wide(PhiConfig(fit="index"))
    model.load_state_dict(source.state_dict())
    assert torch.equal(model.head.weight, source.head.weight)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_follows_works_as_before(tmp_path: Path) -> None:
    model = wide()
    phiquant.offload_(model, tmp_path / "planes")
    copied = copy.deepcopy(model)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(loaded["head.weight"], model.head.weight)
    phiquant.dequantize_(model)
    assert torch.equal(model.head.weight, copied.head.weight.dequantize())
    assert torch.equal(copied.half().float().head.weight, loaded["head.weight"])


class TestErrors:
    def test_no_module(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got dict"):
            phiquant.offload_({}, tmp_path)  # type: ignore[type-var]

    def test_no_values(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"^embed\.weight: is on the meta device"):
            phiquant.offload_(wide().to("meta"), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OSError, match=r"file"):
            phiquant.offload_(wide(), tmp_path / "file")

    def test_a_file_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(planes: dict[str, Tensor], file: Path) -> Any:
            file.write_bytes(b"half")
            raise RuntimeError("No space left on device")

        monkeypatch.setattr("phiquant.offload.save_file", full)
        model = wide()
        with pytest.raises(OSError, match=r"embed\.weight\..*: cannot be written: No space"):
            phiquant.offload_(model, tmp_path)
        assert not list(tmp_path.iterdir())
        assert isinstance(model.embed.weight, PhiTensor)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_files(tmp_path: Path) -> None:
    """132 MB of planes leave anonymous memory and come back as pages of the file."""
    result = run_python(
        f"""
        import phiquant, torch
        from torch import nn

        def anonymous():
            fields = open("/proc/self/status").read().split()
            return int(fields[fields.index("RssAnon:") + 1]) // 1024

        base, rows = anonymous(), 1 << 20
        weight = phiquant.PhiTensor.from_hp(torch.randn(64, 128))
        model = nn.Module()
        model.weight = nn.Parameter(weight._with(
            index_plane=torch.ones(rows, 64, dtype=torch.uint8),
            deviation_plane=torch.ones(rows, 64, dtype=torch.uint8),
            scale_plane=weight.scale_plane[:1].repeat(rows, 1),
        ), requires_grad=False)
        held = anonymous() - base
        phiquant.offload_(model, {str(tmp_path)!r})
        print(held, anonymous() - base)
        """
    )
    held, left = map(int, result.stdout.split())
    assert held > 120, result.stderr
    assert left < 40
