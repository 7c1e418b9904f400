"""The code of the guides runs, block after block, as it stands on the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.support import llama

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ["compress", "transformers", "speculation", "modules", "devices"]


def names() -> dict[str, Any]:
    """What the pages speak of without making it."""
    build: Callable[[], torch.nn.Module] = llama
    return {"build": build, "model": build(), "x": torch.randint(3, 130, (2, 5))}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_the_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("my-model")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    assert blocks
    known = names()
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), known)
