"""Contenders take turns, once each to warm up, and for as long as is asked."""

from __future__ import annotations

import time

from benchmarks.timing import take_turns


def test_turns() -> None:
    calls: list[str] = []
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert set(times) == {"a", "b"}
    assert 0 <= times["a"].best <= times["a"].median


def test_turns_fill_the_time() -> None:
    calls: list[str] = []

    def run() -> None:
        calls.append("run")
        time.sleep(0.005)

    times = take_turns({"run": run}, 2, at_least=0.05)
    assert 4 <= len(calls) <= 11
    assert times["run"].best >= 0.005
