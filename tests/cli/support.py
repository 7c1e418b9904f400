"""Run the command, and compare the checkpoints that it writes."""

from __future__ import annotations

from pathlib import Path

import torch
from click.testing import CliRunner, Result

import phiquant
from phiquant import PhiTensor
from phiquant.cli.commands import phiquant as command


def run(*arguments: object, code: int = 0) -> Result:
    """Run ``phiquant`` with these arguments; it must end with this exit status."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def assert_same_files(one: Path, other: Path) -> None:
    """The same tensors, plane for plane, by whatever names shared ones are stored."""
    mine, others = phiquant.open(one), phiquant.open(other)
    assert {*mine, *mine.tied} == {*others, *others.tied}
    for name in mine:
        ours, theirs = mine[name], others[others.tied.get(name, name)]
        assert isinstance(ours, PhiTensor) == isinstance(theirs, PhiTensor), name
        if not isinstance(ours, PhiTensor) or not isinstance(theirs, PhiTensor):
            assert torch.equal(ours, theirs), name
            continue
        assert ours.op_arguments == theirs.op_arguments, name
        for plane, its in zip(ours.planes, theirs.planes, strict=True):
            assert (plane is None) == (its is None), name
            assert plane is None or torch.equal(plane, its), name


def hidden(folder: Path) -> list[str]:
    """What a run has left beside its destination."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
