"""Tables align, verdicts say what they compare, JSON is valid for any reader."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.reporting import Verdict, environment, save, table


def test_table() -> None:
    text = table(["name", "bits", "x"], [["a", 4.25, None], ["long name", 12.0, 1.5e-7]])
    assert text.splitlines() == [
        "| name      |  bits |       x |",
        "| --------- | ----: | ------: |",
        "| a         |  4.25 |       - |",
        "| long name | 12.00 | 1.5e-07 |",
    ]


@pytest.mark.parametrize(
    ("measured", "word"), [(0.9, "PASS"), (1.2, "PASS"), (0.89, "MISS"), (None, "----")]
)
def test_verdict(measured: float | None, word: str) -> None:
    text = str(Verdict("index tier", 0.9, measured))
    assert text.startswith(f"{word}  index tier")
    assert ("not measured" in text) == (measured is None)


@pytest.mark.parametrize(("measured", "word"), [(1.4, "PASS"), (1.5, "PASS"), (1.51, "MISS")])
def test_verdict_on_a_price(measured: float, word: str) -> None:
    assert str(Verdict("a call", 1.5, measured, "x", at_most=True)).startswith(word)


def test_saved_json_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    save(path, {"a": [math.inf, 1.0], "b": {"c": math.nan, "d": "text"}})
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict == {"a": [None, 1.0], "b": {"c": None, "d": "text"}}


def test_environment_names_versions_but_not_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    import torch

    monkeypatch.setattr("sys.argv", ["/somewhere/quality.py", "--quick"])
    found = environment("benchmarks.quality")
    assert found["command"] == "python -m benchmarks.quality --quick"
    assert found["versions"]["torch"] == torch.__version__
    assert found["host"]["threads"] == torch.get_num_threads()
    assert platform.node() not in json.dumps(found)
