"""Timing of contenders that take turns, so that whatever slows the host slows all of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Times(NamedTuple):
    """Seconds of one call: the median of the repeats, and the best."""

    median: float
    best: float


def take_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, at_least: float = 0.0
) -> dict[str, Times]:
    """Call each once to warm up, then all of them in turn, `repeats` times or more.

    Turns go on until `at_least` seconds have passed, the warm-up not counted. Each has an order of
    its own: what a contender leaves behind, as threads that wait for more by spinning, would
    otherwise always slow the same one.
    """
    order, chance = list(runs), random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    began, turns = time.perf_counter(), 0
    while turns < repeats or time.perf_counter() - began < at_least:
        turns += 1
        chance.shuffle(order)
        for name in order:
            start = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - start)
    return {name: Times(statistics.median(s), min(s)) for name, s in taken.items()}
