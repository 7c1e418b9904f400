"""Writing: shards, an index, and files that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import phiquant
from phiquant import PhiConfig, PhiTensor
from phiquant.checkpoint import ShardWriter, planes_of, writer
from phiquant.checkpoint.files import INDEX, WEIGHTS
from phiquant.checkpoint.writer import parse_size
from tests.checkpoint.support import Holder, RawFile, kinds, same_decodes, same_planes
from tests.support import TiedModel, weight


@pytest.mark.parametrize(
    ("text", "size"),
    [(1, 1), ("1", 1), ("5GB", 5 * 10**9), ("1.5 kb", 1500), (" 2MB ", 2 * 10**6), ("1TB", 10**12)],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", [0, -1, "", "GB", "1XB", "0B", "1e9", "0.1", None], ids=str)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="max_shard_size: expected bytes or a text like '5GB'"):
        parse_size(text)


def plain(count: int = 5) -> nn.Module:
    return nn.Sequential(*(nn.Linear(128, 128) for _ in range(count)))


def layers(count: int = 5) -> nn.Module:
    torch.manual_seed(count)
    model = plain(count)
    phiquant.quantize_(model, PhiConfig(exact=True))
    return model


def shards(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_shards_hold_what_the_index_says(tmp_path: Path) -> None:
    model = layers()
    phiquant.save(model, tmp_path, max_shard_size="60KB")
    names = shards(tmp_path)
    assert names[:-1] == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert names[-1] == INDEX
    assert all((tmp_path / name).stat().st_size < 64_000 for name in names)
    index = json.loads((tmp_path / INDEX).read_text())
    assert set(index["weight_map"].values()) == set(names[:-1])
    total = sum((tmp_path / name).stat().st_size for name in names[:-1])
    assert index["metadata"]["total_size"] == total
    again = phiquant.load(plain, tmp_path)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert same_decodes(one, other), name


def test_a_weight_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    phiquant.save(layers(2), tmp_path, max_shard_size=1000)
    assert len(phiquant.open(tmp_path)) == 4


@pytest.mark.parametrize("before", ["60KB", "30KB", "5GB"])
@pytest.mark.parametrize("after", ["60KB", "30KB", "5GB"])
def test_a_folder_holds_the_last_checkpoint_alone(tmp_path: Path, before: str, after: str) -> None:
    folder, fresh = tmp_path / "folder", tmp_path / "fresh"
    phiquant.save(layers(4), folder, max_shard_size=before)
    (folder / "config.json").write_text("{}")
    model = layers(5)
    phiquant.save(model, folder, max_shard_size=after)
    phiquant.save(model, fresh, max_shard_size=after)
    assert set(shards(folder)) == {*shards(fresh), "config.json"}
    for name in set(shards(fresh)) - {INDEX}:
        assert RawFile.read(fresh / name) == RawFile.read(folder / name), name


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize("before", ["60KB", "30KB", "5GB"])
@pytest.mark.parametrize("after", ["60KB", "30KB", "5GB"])
def test_a_save_that_ends_early_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    """Ended after any of its renames: the old checkpoint, the new one, or an error; no mixture."""
    old, new = layers(4), layers(4)
    for parameter in new.parameters():
        if not isinstance(parameter, PhiTensor):
            parameter.data.fill_(7)
    values = [[p.dequantize() if isinstance(p, PhiTensor) else p for p in m.parameters()]
              for m in (old, new)]  # fmt: skip
    rename, remove, left = Path.replace, Path.unlink, [0]

    def count_down() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def replace(self: Path, target: Path) -> Path:
        if target.parent == folder:
            count_down()
        return rename(self, target)

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.parent == folder:
            count_down()
        remove(self, missing_ok=missing_ok)

    for steps in range(20):
        folder = tmp_path / str(steps)
        monkeypatch.undo()
        phiquant.save(old, folder, max_shard_size=before)
        left[0] = steps
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(Path, "unlink", unlink)
        try:
            phiquant.save(new, folder, max_shard_size=after)
            assert is_one_of(folder, values[1:])
            break
        except Killed:
            monkeypatch.undo()
            assert is_one_of(folder, values) or error_of(folder)
    else:
        pytest.fail("more steps than counted here")


def is_one_of(folder: Path, values: list[list[torch.Tensor]]) -> bool:
    if error_of(folder):
        return False
    found = list(phiquant.load(lambda: plain(4), folder).parameters())
    return any(all(map(same_decodes, found, of)) for of in values)


def error_of(folder: Path) -> bool:
    try:
        phiquant.open(folder)
    except (FileNotFoundError, phiquant.CheckpointError):
        return True
    return False


@pytest.mark.parametrize("size", ["60KB", "5GB"])
@pytest.mark.parametrize("call", [1, 2])
def test_an_error_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, call: int
) -> None:
    folder = tmp_path / "model"
    phiquant.save(layers(4), folder, max_shard_size=size)
    before = {name: (folder / name).read_bytes() for name in shards(folder)}
    calls, write_tensors = [], writer.write_tensors

    def failing(tensors: object, path: Path, metadata: object) -> None:
        calls.append(path)
        if len(calls) == (call if size == "60KB" else 1):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write_tensors(tensors, path, metadata)

    monkeypatch.setattr(writer, "write_tensors", failing)
    with pytest.raises(OSError, match="No space left"):
        phiquant.save(layers(5), folder, max_shard_size=size)
    assert {name: (folder / name).read_bytes() for name in shards(folder)} == before
    assert shards(tmp_path) == ["model"]


def test_an_error_leaves_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def failing(tensors: object, path: Path, metadata: object) -> None:
        raise SafetensorError("no")

    monkeypatch.setattr(writer, "write_tensors", failing)
    with pytest.raises(SafetensorError):
        phiquant.save(layers(1), path)
    assert path.read_bytes() == b"old"
    assert shards(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("kind", ["4+4", "many blocks", "special bfloat16", "golden", "experts"])
def test_slices_are_stored_without_the_rest(tmp_path: Path, kind: str) -> None:
    whole = kinds()[kind]()
    part = whole[1:3]
    phiquant.save(Holder(weight=part), tmp_path)
    read = phiquant.open(tmp_path).read("weight")
    assert same_decodes(read, part)
    assert (tmp_path / WEIGHTS).stat().st_size < 0.75 * whole.stored_bytes + 3000


@pytest.mark.parametrize(
    "cut",
    [lambda t: t[::3], lambda t: t[:, 512:1024], lambda t: t[4:9].transpose(0, 1), lambda t: t[7]],
    ids=["steps", "columns", "transposed", "a row"],
)
def test_views_with_loose_starts_are_stored(tmp_path: Path, cut: object) -> None:
    """Their blocks do not follow each other; those of a file do."""
    view = cut(kinds()["many blocks"]())  # type: ignore[operator]
    phiquant.save(Holder(weight=view), tmp_path)
    read = phiquant.open(tmp_path).read("weight")
    assert same_decodes(read, view)
    assert read.is_exact


def test_a_writer_goes_on_where_another_ended(tmp_path: Path) -> None:
    first = ShardWriter(tmp_path)
    first.add("a", kinds()["4+4"]())
    first.flush({})
    first.add("b", torch.ones(3))  # is lost
    second = ShardWriter(tmp_path)
    assert second.done == {"a"}
    with pytest.raises(ValueError, match="a: is stored already"):
        second.add("a", torch.ones(3))
    second.add("b", torch.zeros(3))
    second.finish()
    assert phiquant.open(tmp_path)["b"].tolist() == [0, 0, 0]
    assert same_planes(phiquant.open(tmp_path)["a"], kinds()["4+4"]())


def test_shared_memory_is_written_out(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    phiquant.save(Holder(a=whole[:4], b=whole[2:8], c=whole.view(3, 4).T), tmp_path)
    checkpoint = phiquant.open(tmp_path)
    assert checkpoint["b"].tolist() == [2, 3, 4, 5, 6, 7]
    assert torch.equal(checkpoint["c"], whole.view(3, 4).T)
    assert (tmp_path / WEIGHTS).stat().st_size < 1000


@pytest.mark.parametrize("name", ["_weight_header", "_weight_scale"])
def test_names_that_would_read_as_planes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: a plain tensor of this name reads as a part"):
        phiquant.save(Holder(**{name: torch.ones(2)}), tmp_path / "x")
    assert shards(tmp_path) == []


def test_a_name_that_is_the_key_of_a_plane_is_refused(tmp_path: Path) -> None:
    model = Holder(weight=kinds()["4+4"](), _weight_index=torch.ones(2))
    with pytest.raises(ValueError, match="its key '_weight_index' is the name of another tensor"):
        phiquant.save(model, tmp_path)


def test_what_holds_no_values_is_refused() -> None:
    tensor = PhiTensor.from_hp(weight(8, 64))
    with pytest.raises(ValueError, match="w: an empty slice of a compressed weight"):
        planes_of("w", tensor[:0])
    with pytest.raises(ValueError, match="w: is on the meta device"):
        planes_of("w", tensor.to("meta"))


def test_ties_are_in_the_last_shard(tmp_path: Path) -> None:
    model = TiedModel()
    phiquant.quantize_(model)
    phiquant.save(model, tmp_path, max_shard_size="20KB")
    assert phiquant.open(tmp_path).tied == {"head.weight": "embed.weight"}
