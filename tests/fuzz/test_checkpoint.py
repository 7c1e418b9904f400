"""A piece of `make fuzz` in every test run, and that it would find something."""

from __future__ import annotations

from pathlib import Path

import pytest

import phiquant
from tests.fuzz.checkpoint import one_run, run_pieces
from tests.fuzz.mutations import KINDS
from tests.fuzz.seeds import MODELS, Folder, seeds

pytestmark = pytest.mark.filterwarnings("ignore:phiquant. .*has no compressed form")
RUNS = 250


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    return seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def outcomes(
    corpus: dict[str, Folder], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("run")
    return [one_run(number, corpus, folder) for number in range(1_000_000, 1_000_000 + RUNS)]


def test_damage_is_an_error_or_harmless(outcomes: list[tuple[str, str]]) -> None:
    assert [pair for pair in outcomes if pair[1].startswith("FINDING")] == []


def test_every_damage_and_every_outcome_occurs(outcomes: list[tuple[str, str]]) -> None:
    assert all(any(kind in what for what, _ in outcomes) for kind in KINDS)
    assert {outcome for _, outcome in outcomes} >= {
        "refused when opened", "refused when read", "refused by a kernel", "used without an error"
    }  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_undamaged_seeds_are_read(kind: str, corpus: dict[str, Folder], tmp_path: Path) -> None:
    for name, data in corpus[kind].items():
        (tmp_path / name).write_bytes(data)
    phiquant.load(MODELS[kind](), tmp_path)


def test_another_error_is_a_finding(
    corpus: dict[str, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("not checked")

    monkeypatch.setattr(phiquant, "open", broken)
    what, outcome = one_run(7, corpus, tmp_path)
    assert what.startswith("run 7 (")
    assert outcome.startswith("FINDING: ")
    assert "IndexError: not checked" in outcome


@pytest.mark.slow
def test_runs_go_on_in_processes_of_their_own() -> None:
    assert list(run_pieces(5, 4, 3)) == [5, 6, 7, 8]
