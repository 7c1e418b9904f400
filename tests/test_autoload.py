"""A compressed checkpoint loads without `import phiquant`, through torch's entry point."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import phiquant
from tests.integrations.support import llama

ROOT = Path(__file__).resolve().parents[1]
LOAD = """
import sys, warnings
warnings.simplefilter("error", RuntimeWarning)
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.lm_head.weight.data).__name__)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    model = llama(num_hidden_layers=1)
    phiquant.quantize_(model)
    model.save_pretrained(folder)
    return folder


def run(code: str, site: Path, *arguments: object, **environment: str) -> str:
    """Run code where the entry points of pyproject.toml are installed."""
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    (name, target), *others = entries["torch.backends"].items()
    assert not others
    info = site / "phiquant-0.0.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: phiquant\nVersion: 0.0.0\n")
    (info / "entry_points.txt").write_text(f"[torch.backends]\n{name} = {target}\n")
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, **environment},
        cwd=site,  # the first on the path, before metadata that a checkout may have
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() + done.stderr


def test_on(tmp_path: Path, checkpoint: Path) -> None:
    assert run(LOAD, tmp_path, checkpoint).startswith("PhiTensor")


def test_off_transformers_says_that_it_does_not_know_the_method(
    tmp_path: Path, checkpoint: Path
) -> None:
    """That is transformers' own doing; `import phiquant` is the way that always works."""
    said = run(LOAD, tmp_path, checkpoint, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert said.startswith("Tensor")
    assert "phiquant" in said


def test_torch_alone_imports_nothing_more(tmp_path: Path) -> None:
    code = "import sys, torch; print('phiquant' in sys.modules, 'phiquant_autoload' in sys.modules)"
    assert run(code, tmp_path).startswith("False True")


def test_a_broken_installation_is_told_and_breaks_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, torch; sys.modules['phiquant'] = None; import transformers.quantizers.auto\n"
        "print('fine')"
    )
    said = run(code, tmp_path)
    assert said.startswith("fine")
    assert "cannot be imported" in said
