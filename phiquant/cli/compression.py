"""From a checkpoint of plain weights to a compressed one."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import phiquant
from phiquant.checkpoint.reader import TIED
from phiquant.cli.model import CARD, check_model, outline_model, stream_model
from phiquant.cli.outline import outline
from phiquant.cli.plain import plan_files, stream_files
from phiquant.cli.progress import Progress
from phiquant.cli.source import CONFIG, Source
from phiquant.cli.store import Store
from phiquant.cli.workspace import Workspace
from phiquant.config import PhiConfig
from phiquant.memory import return_at_once
from phiquant.report import Report


@dataclass(frozen=True)
class Job:
    """What to compress, where to and how.

    Args:
        source: with weights in safetensors files.
        destination: the folder that is made.
        config: how to compress.
        skip: patterns of modules that are left alone.
        max_shard_size: bytes of one file, or text like "2GB"; no more is held in memory.
    """

    source: Source
    destination: Path
    config: PhiConfig
    skip: tuple[str, ...] = ()
    max_shard_size: int | str = "2GB"

    @property
    def identity(self) -> dict[str, Any]:
        """What the planes depend on: an interrupted job goes on only if it is the same."""
        return {
            "phiquant": phiquant.__version__,
            "source": self.source.fingerprint,
            "settings": asdict(self.config) | {"skip": list(self.skip)},
        }

    def check(self) -> None:
        """Raise ValueError if source and destination are one in the other."""
        source, destination = self.source.folder.resolve(), self.destination.resolve()
        inside = source.is_relative_to(destination)
        if inside or (self.source.path.is_dir() and destination.is_relative_to(source)):
            raise ValueError(f"{self.destination}: must be another folder than {source}")


@dataclass(frozen=True)
class Result:
    """What a job did.

    Args:
        report: on every parameter.
        resumed: tensors that an earlier run had left.
        missing: weights that the model wants and the source does not have.
        left: files of the source that were not copied, because they are code or other weights.
    """

    report: Report
    resumed: int
    missing: list[str]
    left: list[str]


def preview(job: Job) -> Report:
    """What would become of every parameter; nothing is written."""
    if job.source.config is not None:
        return outline_model(job.source, job.config, job.skip)
    return outline(plan_files(job.source, job.config, job.skip))


def compress(job: Job, progress: Progress, force: bool = False, restart: bool = False) -> Result:
    """Do it, or go on with it where an earlier run was interrupted.

    The destination appears when all is there. Memory holds one shard of compressed weights and
    the originals of one weight at a time.

    Args:
        progress: is told of every weight.
        force: replace a checkpoint at the destination.
        restart: do not go on with what an earlier run has left.

    Raises:
        FileExistsError: the destination is there, or what another job has left.
        ValueError: a weight cannot be compressed, or source and destination are the same.
        ImportError: transformers is needed and not installed.
        OSError: a file cannot be read or written.
    """
    job.check()
    return_at_once()
    if job.source.config is not None:
        check_model(job.source)
    with Workspace(job.destination, job.identity, force, restart) as workspace:
        store = Store(workspace.folder, job.max_shard_size, progress)
        resumed = store.resumed
        try:
            report, missing = _stream(job, store, workspace.folder)
        finally:
            progress.close()
        left = _copy_companions(job.source, workspace.folder)
        if job.source.config is not None:
            _write_card(job.source, workspace.folder, report)
        workspace.publish()
    return Result(report, resumed, missing, left)


def _stream(job: Job, store: Store, folder: Path) -> tuple[Report, list[str]]:
    if job.source.config is None:
        slots = plan_files(job.source, job.config, job.skip)
        report = stream_files(job.source, slots, store)
        store.finish({})
        return report, []
    streamed, config = stream_model(job.source, job.config, job.skip, store)
    store.finish({TIED: json.dumps(streamed.ties)} if streamed.ties else {})
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return streamed.report, streamed.missing


def _copy_companions(source: Source, folder: Path) -> list[str]:
    """Copy what belongs to a model beside its weights; returns what was left."""
    copied, left = source.companions()
    if source.config is None and source.path.is_dir() and (source.path / CONFIG).is_file():
        copied.append(Path(CONFIG))  # not one that we rewrite
    for name in copied:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / name, folder / name)
    return [str(name) for name in left]


def _write_card(source: Source, folder: Path, report: Report) -> None:
    """A card for the compressed model; the original's is kept under another name."""
    from phiquant.cli.model import card_of

    if (source.folder / CARD).is_file():
        (folder / CARD).replace(folder / "README.original.md")
    (folder / CARD).write_text(card_of(source, folder, report), encoding="utf-8")
