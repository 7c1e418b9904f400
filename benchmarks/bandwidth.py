"""What memory gives: `python -m benchmarks.bandwidth [--json PATH]`.

Several readers go through a block much larger than the last-level cache; the best of them is the
roofline of everything that reads its weights once. A copy counts what it reads and what it writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.reporting import environment, save, table
from benchmarks.timing import take_turns

BLOCK_BYTES = 512_000_000
_COLUMNS = 4096
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


class Reader(NamedTuple):
    """A function that goes through its block once, and the bytes that it moves."""

    run: Callable[[], object]
    bytes: int


def product_reader(size: int = BLOCK_BYTES) -> Reader:
    """A matrix-vector product in fp32, the fastest of the readers on every host tried."""
    matrix = torch.ones(max(size // (4 * _COLUMNS), 1), _COLUMNS)
    return Reader(partial(torch.mv, matrix, torch.ones(_COLUMNS)), matrix.nbytes)


def readers(size: int = BLOCK_BYTES) -> dict[str, Reader]:
    """Every reader. numpy's runs on one thread whatever is set."""
    product = product_reader(size)
    matrix = torch.ones(max(size // (4 * _COLUMNS), 2), _COLUMNS)
    copied = matrix[: len(matrix) // 2]
    target = torch.empty_like(copied)
    runs: dict[str, Callable[[], object]] = {
        "torch.sum, fp32": matrix.sum,
        "torch.sum, int64": matrix.view(torch.int64).sum,
        "torch.max, fp32": matrix.max,
        "numpy.sum, fp32": partial(np.sum, matrix.numpy()),
    }
    found = {name: Reader(run, matrix.nbytes) for name, run in runs.items()}
    copy = Reader(partial(target.copy_, copied), 2 * copied.nbytes)
    return {"torch.mv, fp32": product, **found, "torch copy, read and written": copy}


def measure(
    counts: tuple[int, ...], repeats: int = 15, size: int = BLOCK_BYTES
) -> list[dict[str, Any]]:
    """GB/s of each reader on each number of threads: the median and the best of the repeats."""
    found = readers(size)
    rows = []
    for count in counts:
        with threads(count):
            times = take_turns({name: reader.run for name, reader in found.items()}, repeats)
        rows += [
            {
                "threads": count,
                "reader": name,
                "gb_per_s": reader.bytes / times[name].median / 1e9,
                "best_gb_per_s": reader.bytes / times[name].best / 1e9,
            }
            for name, reader in found.items()
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
