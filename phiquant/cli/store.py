"""Where compressed weights go one by one, and what was said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from phiquant.checkpoint import Checkpoint, ShardWriter
from phiquant.cli.progress import Progress, size
from phiquant.plan import Slot

NOTES = "phiquant-notes.jsonl"


class Store:
    """Writes tensors to shards, and remembers across runs what cannot be read from them.

    Args:
        folder: of the workspace.
        max_shard_size: bytes of one file, or text like "2GB".
        progress: told of every original that is done.
    """

    def __init__(self, folder: Path, max_shard_size: int | str, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self._writer = ShardWriter(folder, max_shard_size)
        parts = self._writer.parts
        self._resumed: Mapping[str, Tensor] = Checkpoint(parts) if parts else {}
        self._notes_file = folder / NOTES
        self.notes: dict[str, dict[str, Any]] = {}
        if self._notes_file.exists():
            for line in self._notes_file.read_text(encoding="utf-8").splitlines():
                self._remember(line)

    def _remember(self, line: str) -> None:
        try:
            note = json.loads(line)
            self.notes[note.pop("name")] = note
        except (ValueError, KeyError, AttributeError):
            pass  # the last line of a run that was killed; its weight is in no part yet

    def __contains__(self, name: str) -> bool:
        return name in self._writer.done

    def begin(self, slots: Iterable[Slot]) -> None:
        """Say what will come.

        Raises:
            OSError: it does not fit on the disk.
        """
        slots = list(slots)
        there = sum(file.stat().st_size for file in self._writer.parts)
        needed = sum(slot.stored_bytes for slot in slots) - there
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(f"{self.folder}: about {size(needed)} are needed, {size(free)} are free")
        self.progress.begin(sum(slot.bytes for slot in slots))

    def passed(self, slot: Slot, resumed: bool) -> None:
        """Say that one of them is stored, by this run or an earlier one."""
        (self.progress.skip if resumed else self.progress.update)(slot.bytes)

    @property
    def resumed(self) -> int:
        """How many tensors an earlier run has left."""
        return len(self._resumed)

    def read(self, name: str) -> Tensor:
        """A tensor that an earlier run has stored, on mapped memory."""
        return self._resumed[name]

    def add(self, name: str, tensor: Tensor, **note: Any) -> None:
        """Store a tensor, and a note on it if there is something to remember.

        Raises:
            ValueError: the name is taken.
            OSError: a file cannot be written.
        """
        self._writer.add(name, tensor)
        if note:
            self.notes[name] = note
            with self._notes_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, **note}) + "\n")

    def finish(self, metadata: Mapping[str, str]) -> list[Path]:
        """Write what is left, and give the files their final names."""
        return self._writer.finish(metadata)
