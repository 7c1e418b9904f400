"""A missing package is named with the command that brings it."""

from pathlib import Path

import pytest

from benchmarks import zoo
from benchmarks.zoo import packages


def test_folder_of_a_package() -> None:
    import torch

    assert packages.folder("torch", "torch") == Path(torch.__file__).parent


@pytest.mark.parametrize(("dependencies", "flags"), [(False, "--no-deps "), (True, "")])
def test_missing_package_says_what_to_install(dependencies: bool, flags: str) -> None:
    with pytest.raises(packages.MissingPackage, match=f"pip install {flags}some-model==1.0"):
        packages.folder("no_such_model", "some-model==1.0", dependencies=dependencies)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHIQUANT_CACHE", str(tmp_path))
    assert packages.cache() == tmp_path
    monkeypatch.delenv("PHIQUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packages.cache() == tmp_path / "phiquant"


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="no model 'gpt5' in the zoo; there are minilm"):
        zoo.model("gpt5")
