"""Registration with transformers and PEFT, in any order of imports, and without importing them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import phiquant
from phiquant.integrations import autoload

ROOT = Path(__file__).resolve().parents[2]
KNOWN = """
from transformers.quantizers import auto
assert auto.AUTO_QUANTIZER_MAPPING["phiquant"].__name__ == "PhiHfQuantizer"
assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["phiquant"] is phiquant.PhiQuantConfig
"""


def run(code: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", "import sys\n" + code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_phiquant_first_is_light_says_what_is_missing_and_then_registers() -> None:
    out = run(
        "import phiquant, torch\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] == 'transformers']\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert 'PhiQuantConfig' in dir(phiquant)\n"
        "sys.modules['transformers'] = None\n"
        "try: phiquant.PhiQuantConfig\n"
        "except ImportError as error: print(error)\n"
        "del sys.modules['transformers']\n" + KNOWN
    )
    assert "pip install 'phiquant[hf]'" in out


def test_transformers_first() -> None:
    run("import transformers.quantizers\nimport phiquant\n" + KNOWN)


def test_an_integration_that_fails_does_not_break_transformers() -> None:
    out = run(
        "import warnings\n"
        "import phiquant\n"
        "sys.modules['phiquant.integrations.transformers'] = None\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    from transformers.quantizers import auto\n"
        "assert 'phiquant' not in auto.AUTO_QUANTIZER_MAPPING\n"
        "print([str(w.message) for w in caught if 'phiquant' in str(w.message)])\n"
    )
    assert "cannot register" in out


PEFT_KNOWN = """
from peft import prepare_model_for_kbit_training
from peft.tuners.lora import model
assert model.dispatch_torchao.__module__ == "phiquant.integrations.peft"
assert prepare_model_for_kbit_training.__module__ == "peft.utils.other"  # as functools.wraps says
assert prepare_model_for_kbit_training.__code__.co_filename.endswith("integrations/peft.py")
"""


@pytest.mark.parametrize("first", ["phiquant", "peft"])
def test_peft(first: str) -> None:
    pytest.importorskip("peft")
    light = "assert 'peft' not in sys.modules\n" if first == "phiquant" else ""
    run(f"import {first}\n{light}import phiquant\n{PEFT_KNOWN}")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A stand-in for transformers' registry, and an integration that notes its import."""
    (tmp_path / "registry_of_methods.py").write_text("known = []\n")
    (tmp_path / "integration_of_phi.py").write_text(
        "import registry_of_methods\nregistry_of_methods.known.append('phiquant')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    others = [finder for finder in sys.meta_path if not isinstance(finder, autoload._Finder)]
    monkeypatch.setattr(sys, "meta_path", others)  # phiquant's own waits if it was imported first
    integrations = {"registry_of_methods": "integration_of_phi"}
    monkeypatch.setattr(autoload, "INTEGRATIONS", integrations)
    yield "registry_of_methods"
    for name in ("registry_of_methods", "integration_of_phi"):
        sys.modules.pop(name, None)


def test_waits_once_for_the_import_and_leaves_no_trace(registry: str) -> None:
    before = list(sys.meta_path)
    autoload.arm()
    autoload.arm()
    assert len(sys.meta_path) == len(before) + 1
    module = importlib.import_module(registry)
    assert module.known == ["phiquant"]
    assert sys.meta_path == before
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__


def test_registers_at_once_where_the_registry_is_loaded(registry: str) -> None:
    module = importlib.import_module(registry)
    before = list(sys.meta_path)
    autoload.arm()
    assert module.known == ["phiquant"]
    assert sys.meta_path == before


def test_unknown_attributes_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PhiQuantConfigs'"):
        phiquant.PhiQuantConfigs  # noqa: B018
