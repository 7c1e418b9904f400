"""Times on a GPU: calls in CUDA graphs, each with operands of its own, and the clock beside them.

A GPU that draws too much power lowers its clock, and takes it up again some time later: what is
compared has to be timed in turn, so that it meets the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Calls = Sequence[Callable[[], object]]
_SPIN = 400_000  # cycles: 0.2 ms, a hundred times what the launch of a kernel adds


class Timing(NamedTuple):
    """Of one call: its median time; of the multiprocessors: median and lowest clock at its end."""

    us: float
    mhz: float
    lowest_mhz: float


def captured(calls: Calls) -> torch.cuda.CUDAGraph:
    """The calls, one after another, in one graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def replayed(graph: torch.cuda.CUDAGraph) -> tuple[float, float]:
    """Milliseconds that the graph takes on a device at work, and the clock in MHz right after.

    The clock comes from a kernel that spins for a given number of cycles: it needs no driver's
    library, and is read within the millisecond, in which a driver's figure may not have changed.
    """
    start, end, spun = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    graph.replay()  # so that neither the launch nor an idle device is part of what is timed
    start.record()
    graph.replay()
    end.record()
    torch.cuda._sleep(_SPIN)
    spun.record()
    spun.synchronize()
    return start.elapsed_time(end), _SPIN / end.elapsed_time(spun) / 1e3


def in_turn(contenders: Sequence[Calls], repeats: int = 15) -> list[Timing]:
    """Of each contender's calls. Every repeat times all of them, every other one backwards."""
    graphs = [captured(calls) for calls in contenders]
    found: list[list[tuple[float, float]]] = [[] for _ in graphs]
    for repeat in range(repeats):
        order = range(len(graphs))
        for at in order if repeat % 2 == 0 else reversed(order):
            found[at].append(replayed(graphs[at]))
    timings = []
    for calls, each in zip(contenders, found, strict=True):
        times, clocks = zip(*each, strict=True)
        us = statistics.median(times) * 1e3 / len(calls)
        timings.append(Timing(us, statistics.median(clocks), min(clocks)))
    return timings


def microseconds(calls: Calls, repeats: int = 15) -> float:
    """The median time of one of `calls`, alone."""
    return in_turn([calls], repeats)[0].us


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / microseconds([lambda: target.copy_(source)]) * 1e6
