"""An interrupted command goes on; the destination is there whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phiquant.checkpoint import writer
from phiquant.cli import compression
from phiquant.cli.store import Store
from tests.cli.support import assert_same_files, hidden, run
from tests.integrations import support

SHARD = ["--max-shard-size", "20KB", "--no-progress"]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return support.saved(support.llama(num_hidden_layers=3), tmp_path / "plain")


class Killed(BaseException):
    """As a signal would end it."""


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """End the next run when it is about to store one more tensor than ``count``."""
    add, calls = Store.add, []

    def counting(self: Store, *args: object, **note: object) -> None:
        calls.append(args)
        if len(calls) > count:
            raise Killed
        add(self, *args, **note)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "add", counting)


@pytest.mark.parametrize("count", [0, 1, 9, 20, 26])
def test_goes_on_and_gives_the_same(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    run("compress", plain, tmp_path / "whole", *SHARD)
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        with pytest.raises(Killed):
            run("compress", plain, tmp_path / "made", *SHARD)
    assert not (tmp_path / "made").exists()
    assert hidden(tmp_path) == [".made.partial"]
    said = json.loads(run("compress", plain, tmp_path / "made", *SHARD, "--json").stdout)
    assert (said["resumed"] > 0) == (count >= 9)
    assert hidden(tmp_path) == []
    assert_same_files(tmp_path / "made", tmp_path / "whole")
    assert all(entry["relative_error"] is not None for entry in said["compressed"])


@pytest.mark.parametrize("kind", ["exact", "lossy"])
def test_goes_on_after_the_weights_are_named(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    options = [*SHARD, *(["--exact"] if kind == "exact" else [])]
    run("compress", plain, tmp_path / "whole", *options)

    def killed(*args: object) -> None:
        raise Killed

    for target, name in ((writer, "write_index"), (compression, "_copy_companions")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, killed)
            with pytest.raises(Killed):
                run("compress", plain, tmp_path / "made", *options)
    run("compress", plain, tmp_path / "made", *options)
    assert_same_files(tmp_path / "made", tmp_path / "whole")
    names = [{path.name for path in (tmp_path / made).iterdir()} for made in ("made", "whole")]
    assert names[0] == names[1]


def test_a_killed_process_is_gone_on_with(tmp_path: Path) -> None:
    plain = support.saved(
        support.llama(hidden_size=256, intermediate_size=512, num_hidden_layers=12),
        tmp_path / "plain",
    )
    command = [sys.executable, "-m", "phiquant", "compress", str(plain), str(tmp_path / "made")]
    command += ["--max-shard-size", "100KB", "--no-progress"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    partial, deadline = tmp_path / ".made.partial", time.monotonic() + 120
    while len(list(partial.glob("part-*"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "made").exists()
    said = json.loads(run("compress", *command[4:], "--json").stdout)
    assert said["resumed"] >= 3
    run("compress", plain, tmp_path / "whole", *command[6:])
    assert_same_files(tmp_path / "made", tmp_path / "whole")


def test_other_settings_or_another_source_are_not_mixed_in(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 12)
        with pytest.raises(Killed):
            run("compress", plain, tmp_path / "made", *SHARD)
    other = run("compress", plain, tmp_path / "made", *SHARD, "--index-bits", 5, code=1)
    assert "settings.index_bits was 4 and is 5" in other.output
    assert "--restart" in other.output
    os.utime(plain / "model.safetensors", ns=(1, 1))
    assert "source.model.safetensors" in run("compress", plain, tmp_path / "made", code=1).output
    said = run("compress", plain, tmp_path / "made", *SHARD, "--restart", "--json")
    assert json.loads(said.stdout)["resumed"] == 0


def test_a_full_disk(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_tensors", full)
        result = run("compress", plain, tmp_path / "made", *SHARD, code=1)
    assert "No space left on device" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]
    run("compress", plain, tmp_path / "made", *SHARD)


def test_what_does_not_fit_is_told_before(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    output = run("compress", plain, tmp_path / "made", code=1).output
    assert "are needed, 1.0 kB are free" in output


def test_force_replaces_a_checkpoint_and_nothing_else(tmp_path: Path, plain: Path) -> None:
    run("compress", plain, tmp_path / "made")
    assert "--force" in run("compress", plain, tmp_path / "made", code=1).output
    run("compress", plain, tmp_path / "made", "--index-bits", 5, "--force")
    assert hidden(tmp_path) == []
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    result = run("compress", plain, tmp_path / "home", "--force", code=1)
    assert "no folder of a checkpoint" in result.output
    assert (tmp_path / "home" / "letter.txt").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of files there")
def test_two_at_once(tmp_path: Path, plain: Path) -> None:
    import fcntl

    partial = tmp_path / ".made.partial"
    partial.mkdir()
    with (partial / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process" in run("compress", plain, tmp_path / "made", code=1).output
