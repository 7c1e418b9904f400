"""No operation of a PhiTensor has warned yet; a small weight with a name."""

from __future__ import annotations

import pytest

from phiquant import PhiTensor
from phiquant.aten import fallback
from tests.support import compressed


@pytest.fixture(autouse=True)
def nothing_warned_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_warned", set())


@pytest.fixture
def matrix() -> PhiTensor:
    tensor = compressed(16, 192)
    tensor.fqn = "block.weight"
    return tensor
