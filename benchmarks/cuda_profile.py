"""What a GPU does in a step: its kernels, how long each takes, and how they are launched."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

_STEPS = 5
_LONGEST = 12
# Of phiquant's products and cuBLAS's (CUTLASS's among them); parts of their names.
_PRODUCTS = ("phiquant::cuda", "gemv", "gemm", "nvjet", "cutlass", "splitK")


class Steps(Protocol):
    def warm_up(self) -> None: ...
    def go_on(self) -> Tensor: ...


class Profile(NamedTuple):
    """Of one step. longest: kernels as (name, ms, launches)."""

    busy_ms: float
    products_ms: float
    graph_launches: float
    longest: list[tuple[str, float, float]]


def profile(steps: Steps) -> Profile:
    steps.warm_up()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        for _ in range(_STEPS):
            steps.go_on()
        torch.cuda.synchronize()
    taken: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    graphs = 0
    for event in trace.events():
        graphs += event.name == "cudaGraphLaunch"
        if event.device_type == DeviceType.CUDA:
            taken[event.name] += event.self_device_time_total / 1e3 / _STEPS
            launches[event.name] += 1
    longest = sorted(taken, key=lambda name: -taken[name])[:_LONGEST]
    return Profile(
        sum(taken.values()),
        sum(ms for name, ms in taken.items() if any(part in name for part in _PRODUCTS)),
        graphs / _STEPS,
        [(name[:80], taken[name], launches[name] / _STEPS) for name in longest],
    )
