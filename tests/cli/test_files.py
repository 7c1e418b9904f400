"""Sources that are no transformers models, or none at all; inspect and verify."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import phiquant
from phiquant import PhiConfig, PhiTensor
from phiquant.cli import main
from tests.cli.support import run


def tensors() -> dict[str, torch.Tensor]:
    return {
        "stem.weight": torch.randn(32, 16, 4, 4),
        "head.weight": torch.randn(16, 256).bfloat16(),
        "head.bias": torch.randn(16),
        "table": torch.randn(64, 64),
        "ids.weight": torch.arange(512).reshape(2, 256),
    }


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


def test_plain_files(tmp_path: Path, plain: Path) -> None:
    result = run("compress", plain, tmp_path / "made", "--json", "--skip", "table")
    said, state = json.loads(result.stdout), load_file(plain)
    assert [entry["names"] for entry in said["compressed"]] == [["head.weight"], ["stem.weight"]]
    made = phiquant.open(tmp_path / "made")
    for name, expected in state.items():
        if name in ("head.weight", "stem.weight"):
            column_dims = expected.dim() - 1
            expected = PhiTensor.from_hp(expected, PhiConfig(), column_dims=column_dims)
            assert torch.equal(made[name], expected)
            assert made[name].shape == state[name].shape
        else:
            assert torch.equal(made[name], expected)
    reasons = {entry["names"][0]: entry["reason"] for entry in said["left_alone"]}
    assert reasons["table"] == "its name does not end in 'weight'"
    assert "int64" in reasons["ids.weight"]


def test_plain_files_dry_run_and_notice(tmp_path: Path, plain: Path) -> None:
    result = run("compress", plain, tmp_path / "made", "--dry-run", "--skip", "head")
    assert "weights are told by their names" in result.stderr
    assert "left out by --skip" in result.output
    assert not (tmp_path / "made").exists()


def test_an_exact_form_that_grows_is_left_alone_and_said_again_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randint(-(2**15), 2**15, (64, 64), dtype=torch.int16).view(torch.bfloat16)
    state = {"a.weight": noise.nan_to_num(), "b.weight": torch.randn(64, 256)}
    save_file(state, tmp_path / "plain.safetensors")
    arguments = ["compress", tmp_path / "plain.safetensors", tmp_path / "made", "--exact", "--json"]
    arguments += ["--max-shard-size", "1KB"]
    from phiquant.cli import compression

    with monkeypatch.context() as patch:
        patch.setattr(compression, "_copy_companions", None)
        run(*arguments, code=1)
    said = json.loads(run(*arguments).stdout)
    assert said["resumed"] == 2
    assert "would grow" in said["left_alone"][0]["reason"]
    assert said["compressed"][0]["relative_error"] == 0.0
    assert not said["compressed"][0]["estimated"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "old").mkdir()
    torch.save(tensors(), tmp_path / "old" / name)
    for source in (tmp_path / "old", tmp_path / "old" / name):
        assert "is a pickle" in run("compress", source, tmp_path / "made", code=1).output


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "noise"])
def test_a_damaged_source_is_named(tmp_path: Path, plain: Path, damage: str) -> None:
    whole = plain.read_bytes()
    damaged = {"cut": whole[:-9], "empty": b"", "noise": b"\xff" * 100}
    if damage == "missing":
        plain.unlink()
    else:
        plain.write_bytes(damaged[damage])
    assert str(plain) in run("compress", plain, tmp_path / "made", code=1).output
    assert not (tmp_path / "made").exists()


def test_what_is_compressed_is_not_compressed_again(tmp_path: Path, plain: Path) -> None:
    run("compress", plain, tmp_path / "made")
    again = run("compress", tmp_path / "made", tmp_path / "twice", code=1)
    assert "is compressed already" in again.output


def test_source_and_destination_must_differ(tmp_path: Path, plain: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    plain.rename(folder / "model.safetensors")
    for destination in (folder, folder / "made", tmp_path):
        output = run("compress", folder, destination, "--force", code=1).output
        assert "must be another folder" in output
    assert load_file(folder / "model.safetensors").keys() == tensors().keys()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--index-bits", 9, "index_bits"),
        ("--group-size", 48, "group_size"),
        ("--max-shard-size", "much", "max_shard_size"),
        ("--fit", "exact", "fit"),
    ],
)
def test_bad_settings(
    tmp_path: Path, plain: Path, option: str, value: object, message: str
) -> None:
    assert message in run("compress", plain, tmp_path / "made", option, value, code=1).output
    assert not (tmp_path / "made").exists()


def test_inspect(tmp_path: Path, plain: Path) -> None:
    run("compress", plain, tmp_path / "made", "--exact")
    found = json.loads(run("inspect", tmp_path / "made", "--json").stdout)
    entries = {entry["name"]: entry for entry in found["weights"]}
    assert set(entries) == {"stem.weight", "head.weight"}
    head = entries["head.weight"]
    assert head["shape"] == [16, 256]
    assert head["tiers"]["index"] == 16 * (256 // 2 + 2 * 4)
    assert head["tiers"]["deviation"] == 16 * (256 + 2 * 4)
    assert (
        head["tiers"]["exact"]
        == head["bytes"]
        == phiquant.open(tmp_path / "made")["head.weight"].stored_bytes
    )  # type: ignore[attr-defined]
    assert set(found["tiers"]) == {"index", "deviation", "exact"}
    text = run("inspect", tmp_path / "made").output
    assert "head.weight  16x256" in text
    assert "read at tier 'index'" in text


def test_verify_tells_by_its_exit_status(tmp_path: Path, plain: Path) -> None:
    run("compress", plain, tmp_path / "lossy")
    assert "cannot be verified" in run("verify", tmp_path / "lossy", code=2).output
    run("compress", plain, tmp_path / "exact", "--exact")
    assert "2 weights verified bit for bit" in run("verify", tmp_path / "exact").output
    file = tmp_path / "exact" / "model.safetensors"
    changed = bytearray(file.read_bytes())
    planes = load_file(file)
    at = changed.find(planes["head._weight_index"].numpy().tobytes())
    changed[at] ^= 1
    file.write_bytes(changed)
    assert "head.weight  FAILED" in run("verify", tmp_path / "exact", code=1).output
    assert "no such file" in run("verify", tmp_path / "none", code=1).output


def test_module_and_version() -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "phiquant", "--version"], cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, phiquant.__version__ in done.stdout) == (0, True)


def test_without_click_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit, match=r"pip install 'phiquant\[cli\]'"):
        main()
