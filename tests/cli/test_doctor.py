"""``phiquant doctor``."""

from __future__ import annotations

import json

import pytest

from phiquant.diagnosis import Diagnosis
from tests.cli.support import run


@pytest.mark.parametrize("remedies", [[], ["buy a faster one"]], ids=["well", "ill"])
def test_the_exit_status_tells_whether_there_is_something_to_mend(
    remedies: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Diagnosis({"kernels": "compiled"}, remedies)
    monkeypatch.setattr("phiquant.doctor", lambda: found)
    code = 1 if remedies else 0
    text = run("doctor", code=code).output
    assert "kernels  compiled" in text
    assert ("remedy: buy a faster one" in text) == bool(remedies)
    data = json.loads(run("doctor", "--json", code=code).output)
    assert data == {"found": {"kernels": "compiled"}, "remedies": remedies}
