"""Times on a GPU: calls in a CUDA graph, each with operands of its own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch


def microseconds(calls: Sequence[Callable[[], object]], repeats: int = 15) -> float:
    """The median time of one of `calls`, which follow each other in one graph."""
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
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / microseconds([lambda: target.copy_(source)]) * 1e6
