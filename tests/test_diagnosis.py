"""doctor() says what runs and why, and what to mend."""

from __future__ import annotations

import json
import os

import pytest
import torch

import phiquant
from phiquant import ops
from tests.support import HIDE_LIBRARY, run_python

compiled = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")


@compiled
def test_the_best_supported_set_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    about = json.loads(torch.ops.phiquant.isa())
    for entry in about["sets"]:
        assert all(about["features"][name] is False for name in entry["missing"])
    assert about["sets"][-1] == {"name": "baseline", "missing": []}
    if not os.environ.get("PHIQUANT_ISA"):
        supported = [entry["name"] for entry in about["sets"] if not entry["missing"]]
        assert about["chosen"] == supported[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr("phiquant.diagnosis._cores", lambda: 1)
    found = phiquant.doctor().found
    assert str(ops.library_path()) in found["kernels"]
    assert found["instruction set"].startswith(about["chosen"])
    assert f"phiquant {phiquant.__version__}" in found["versions"]
    assert f"torch {torch.__version__}" in found["versions"]


@compiled
@pytest.mark.parametrize(
    ("isa", "set_", "remedy"),
    [
        ("baseline", "baseline: PHIQUANT_ISA=baseline", "which is faster"),
        ("mmx", "this CPU and build have", "unset PHIQUANT_ISA: until then"),
    ],
)
def test_another_set_by_environment_is_told(isa: str, set_: str, remedy: str) -> None:
    run = run_python(
        f"import os\nos.environ['PHIQUANT_ISA'] = '{isa}'\n"
        "import json, phiquant\nd = phiquant.doctor()\n"
        "print(json.dumps([d.found['instruction set'], d.remedies]))"
    )
    assert run.returncode == 0, run.stderr[-2000:]
    instruction_set, remedies = json.loads(run.stdout.splitlines()[-1])
    assert set_ in instruction_set
    best = json.loads(torch.ops.phiquant.isa())["sets"]
    if isa == "mmx" or next(e["name"] for e in best if not e["missing"]) != isa:
        assert any(remedy in text for text in remedies)


def test_without_the_compiled_library_the_remedy_is_a_compiler() -> None:
    run = run_python(HIDE_LIBRARY + "import phiquant\nprint(phiquant.doctor())")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "the Python reference" in run.stdout
    assert "it was installed without a C++ compiler" in run.stdout
    assert "remedy: install a C++ compiler" in run.stdout


@pytest.mark.parametrize(
    ("threads", "cores", "remedy"),
    [(8, 4, "OMP_NUM_THREADS=4"), (1, 8, "only 1 of 8 cores"), (4, 4, None), (4, 8, None)],
)
def test_threads(
    threads: int, cores: int, remedy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("phiquant.diagnosis._cores", lambda: cores)
    result = phiquant.doctor()
    assert result.found["threads"].startswith(f"{threads} of {cores}")
    told = [text for text in result.remedies if "THREADS" in text]
    assert [remedy in text for text in told] == ([True] if remedy else [])
