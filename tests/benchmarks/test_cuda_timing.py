"""Times on a GPU: contenders in turn, medians, and a clock that is one."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cuda_timing
from benchmarks.cuda_timing import Timing, copy_bandwidth, in_turn, microseconds
from tests.cuda.support import ON_A_GPU


def test_contenders_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    clocks = iter([1980.0, 1700.0] * 3)

    def replayed(graph: str) -> tuple[float, float]:
        asked.append(graph)
        return (len(asked) if graph == "a" else 10.0), next(clocks)

    monkeypatch.setattr(cuda_timing, "captured", lambda calls: calls)
    monkeypatch.setattr(cuda_timing, "replayed", replayed)
    found = in_turn(["a", "bb"], repeats=3)  # type: ignore[list-item]
    assert "-".join(asked) == "a-bb-bb-a-a-bb"
    assert found[0] == Timing(4000.0, 1980.0, 1700.0)  # of 1, 4 and 5 ms
    assert found[1] == Timing(5000.0, 1700.0, 1700.0)  # two calls a graph


class TestOnAGpu:
    pytestmark = ON_A_GPU

    def test_a_longer_call_takes_longer(self) -> None:
        short, long = (
            torch.zeros(size, dtype=torch.uint8, device="cuda") for size in (1 << 20, 1 << 29)
        )
        found = in_turn([[short.zero_] * 3, [long.zero_]], repeats=3)
        assert 0 < found[0].us < found[1].us
        assert microseconds([long.zero_], 3) > found[0].us

    def test_the_clock_is_one(self) -> None:
        (timing,) = in_turn([[lambda: None]], repeats=3)
        assert 100 < timing.lowest_mhz <= timing.mhz < 4000

    def test_a_copy_moves_bytes(self) -> None:
        assert copy_bandwidth(1 << 24) > 0
