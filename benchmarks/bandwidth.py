"""What memory gives: `python -m benchmarks.bandwidth [--json PATH]`.

Several readers go through a block much larger than the last-level cache; the best of them is the
roofline of everything that reads its weights once. A copy counts what it reads and what it writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reporting import environment, save, table
from benchmarks.timing import take_turns

BLOCK_BYTES = 512_000_000
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_ASSUMED_CACHE = 105 << 20  # where the system does not say: that of the host in docs/performance.md
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def last_level_cache(caches: Path = _CACHES) -> int:
    """Bytes of the largest cache that the first core has, 105 MiB if the system does not say."""
    sizes = [path.read_text().strip() for path in caches.glob("index*/size")]
    found = [int(size[:-1]) * _UNITS[size[-1]] for size in sizes if size[-1:] in _UNITS]
    return max(found, default=_ASSUMED_CACHE)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def readers(block_bytes: int = BLOCK_BYTES) -> dict[str, tuple[Callable[[], object], int]]:
    """Every reader, with the bytes that it moves. numpy's runs on one thread whatever is set."""
    words = torch.ones(block_bytes // 8, dtype=torch.int64)
    floats = words.view(torch.float32)
    target, half = torch.empty(len(words) // 2, dtype=torch.int64), words[: len(words) // 2]
    array = words.numpy()
    return {
        "torch.sum, fp32": (floats.sum, block_bytes),
        "torch.sum, int64": (words.sum, block_bytes),
        "torch.max, fp32": (floats.max, block_bytes),
        "torch.max, int64": (words.max, block_bytes),
        "torch copy, read and written": (lambda: target.copy_(half), 2 * target.nbytes),
        "numpy.sum, int64": (lambda: np.sum(array), block_bytes),
    }


def measure(
    counts: tuple[int, ...], repeats: int = 15, block_bytes: int = BLOCK_BYTES
) -> list[dict[str, Any]]:
    """GB/s of each reader on each number of threads: the median and the best of the repeats."""
    found = readers(block_bytes)
    rows = []
    for count in counts:
        with threads(count):
            times = take_turns({name: run for name, (run, _) in found.items()}, repeats)
        rows += [
            {
                "threads": count,
                "reader": name,
                "gb_per_s": size / times[name].median / 1e9,
                "best_gb_per_s": size / times[name].best / 1e9,
            }
            for name, (_, size) in found.items()
        ]
    return rows


def roofline(rows: list[dict[str, Any]], count: int) -> float:
    """GB/s of the best reader's median on `count` threads."""
    return max(row["gb_per_s"] for row in rows if row["threads"] == count)


def report(rows: list[dict[str, Any]]) -> str:
    cells = ([r["threads"], r["reader"], r["gb_per_s"], r["best_gb_per_s"]] for r in rows)
    return table(["threads", "reader", "median GB/s", "best GB/s"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(tuple(sorted({1, options.threads})), options.repeats)
    about = environment("benchmarks.bandwidth")
    print(json.dumps(about, indent=1), report(rows), sep="\n")
    best = roofline(rows, options.threads)
    print(f"read bandwidth on {options.threads} threads: {best:.1f} GB/s")
    print(f"last-level cache: {last_level_cache() / 1e6:.0f} MB")
    if options.json:
        save(options.json, {"environment": about, "bandwidth": rows})


if __name__ == "__main__":
    main()
