"""`make bench-cpu` runs modules that there are, with options that they take."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from benchmarks import cpu


def test_commands(tmp_path: Path) -> None:
    found = cpu.commands(tmp_path, 2)
    assert [command[2] for command in found] == [f"benchmarks.{part}" for part in cpu.PARTS]
    assert found[0][3:] == ["--json", str(tmp_path / "bandwidth.json"), "--threads", "2"]
    assert [command[3:] for command in cpu.commands(None, None)] == [[], [], [], ["--compile"]]


@pytest.mark.parametrize("part", cpu.PARTS)
def test_parts_take_the_options(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{part}")
    monkeypatch.setattr(sys, "argv", [part, "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    printed = capsys.readouterr().out
    assert "--json" in printed
    assert "--threads" in printed
