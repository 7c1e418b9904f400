"""The hidden folder beside the destination in which a checkpoint grows."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from phiquant.checkpoint.files import SUFFIX, WEIGHTS
from phiquant.cli.store import NOTES

_JOB, _LOCK = "phiquant-job.json", ".lock"
_NAMED = re.compile(r"model-(\d{5})-of-\d{5}\.safetensors")


class Workspace:
    """A folder that becomes the destination at once, when all is there.

    Until then it is a hidden one beside it, which the next run goes on with.

    Args:
        destination: the folder that is to be.
        identity: what the result depends on; a folder of another identity is not gone on with.
        force: replace a checkpoint that is at the destination.
        restart: throw away what an earlier run has left.

    Raises:
        FileExistsError: the destination is there, or the work of another run is.
        BlockingIOError: another process is at work there.
    """

    def __init__(
        self,
        destination: Path,
        identity: dict[str, Any],
        force: bool = False,
        restart: bool = False,
    ) -> None:
        self.destination, self.identity = destination, identity
        self.force, self.restart = force, restart
        self.folder = destination.with_name(f".{destination.name}.partial")
        self.is_resumed = False
        self._lock: Any = None

    def __enter__(self) -> Self:
        self._check_destination()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            if self.restart:
                self._empty()
            self._check_identity()
            self._undo_names()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()
        if isinstance(error, Exception) and not any(self.folder.glob(f"*{SUFFIX}")):
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing to go on with

    def publish(self) -> None:
        """Give the folder its final name."""
        mode = (self.folder / _JOB).stat().st_mode
        for file in self.folder.glob(f"*{SUFFIX}"):
            file.chmod(mode)  # safetensors lets nobody else read a file
        for name in (NOTES, _JOB, _LOCK):
            (self.folder / name).unlink(missing_ok=True)
        _sync(self.folder)
        old = self.destination.with_name(f".{self.destination.name}.old")
        if self.destination.exists():
            self._check_destination()
            shutil.rmtree(old, ignore_errors=True)
            self.destination.rename(old)
        self.folder.rename(self.destination)
        _sync(self.destination.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _check_destination(self) -> None:
        there = self.destination
        if not there.exists() and not there.is_symlink():
            return
        if not self.force:
            raise FileExistsError(f"{there}: is there already; --force replaces it")
        if there.is_symlink() or not there.is_dir() or not any(there.glob(f"*{SUFFIX}")):
            raise FileExistsError(f"{there}: is no folder of a checkpoint and is not replaced")

    def _take_lock(self) -> None:
        self._lock = (self.folder / _LOCK).open("w")
        try:
            import fcntl
        except ModuleNotFoundError:  # not on Windows
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise BlockingIOError(f"{self.folder}: another process is at work there") from error

    def _empty(self) -> None:
        for item in self.folder.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name != _LOCK:
                item.unlink()

    def _check_identity(self) -> None:
        """Go on with what is there if it is of this identity."""
        job = self.folder / _JOB
        if not job.exists():
            if stray := sorted(p.name for p in self.folder.iterdir() if p.name != _LOCK):
                raise FileExistsError(
                    f"{self.folder}: holds {stray[:4]} of unknown origin; --restart removes them"
                )
            partial = self.folder / f".{_JOB}.new"
            partial.write_text(json.dumps(self.identity), encoding="utf-8")
            partial.replace(job)
            return
        try:
            there = json.loads(job.read_text(encoding="utf-8"))
        except ValueError:
            there = {}
        if changed := _differences(there, json.loads(json.dumps(self.identity))):
            raise FileExistsError(
                f"{self.folder}: was begun otherwise: {'; '.join(changed)}. --restart starts anew"
            )
        self.is_resumed = True

    def _undo_names(self) -> None:
        """Final names of an interrupted finish are undone, so that the parts are found again."""
        for file in self.folder.glob(f"model*{SUFFIX}"):
            match = _NAMED.fullmatch(file.name)
            number = 1 if file.name == WEIGHTS else int(match[1]) if match else None
            if number is not None:
                file.rename(self.folder / f"part-{number:05d}{SUFFIX}")


def _differences(there: Any, now: Any, path: str = "") -> list[str]:
    """What differs between two nested dictionaries."""
    if not isinstance(there, dict) or not isinstance(now, dict):
        return [] if there == now else [f"{path} was {there!r} and is {now!r}"]
    found: list[str] = []
    for key in [*now, *(key for key in there if key not in now)]:
        at = f"{path}.{key}" if path else str(key)
        found += _differences(there.get(key), now.get(key), at)
    return found


def _sync(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
