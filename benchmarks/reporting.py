"""What a benchmark prints and stores: tables, verdicts, and where they were measured."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "torchao", "transformers", "numpy")


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured; `measured` is None if this run could not tell.

    `at_most`: the bar is what may not be exceeded, a price and not a gain.
    """

    claim: str
    bar: float
    measured: float | None
    unit: str = "dB"
    at_most: bool = False

    def __str__(self) -> str:
        if self.measured is None:
            return f"----  {self.claim}: bar {self.bar:g} {self.unit}, not measured in this run"
        kept = self.measured <= self.bar if self.at_most else self.measured >= self.bar
        word = "PASS" if kept else "MISS"
        return f"{word}  {self.claim}: {self.measured:.2f} {self.unit}, bar {self.bar:g}"


def environment(module: str) -> dict[str, Any]:
    """Versions, the command that ran `module`, and the kind of machine (not its name)."""
    import phiquant

    return {
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            "phiquant": phiquant.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "host": {
            "machine": platform.machine(),
            "system": platform.system(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An aligned Markdown table; all but the first column to the right, None is a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (list(header), rule, *cells)
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.2f}" if abs(value) >= 2 else f"{value:.3g}"


def save(path: Path, results: dict[str, Any]) -> None:
    """Write JSON that any reader takes: a number that is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(results), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
