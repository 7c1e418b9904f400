"""A config.json that anyone may have written: clear errors, nothing taken on trust."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from phiquant import PhiQuantConfig
from tests.integrations.support import llama

WRONG = [None, True, "4", 4.0, 3.5, float("nan"), -1, 10**30, [], [4], {}, {"a": 4}]
NUMBERS = ("index_bits", "deviation_bits", "group_size")


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("field", [*NUMBERS, "grid", "fit"])
def test_a_field_of_another_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"quantization_config: .*{field} must be one of"):
        PhiQuantConfig.from_dict(PhiQuantConfig().to_dict() | {field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exact": 1}, "exact must be True or False, got 1"),
        ({"exact": "true"}, "exact must be True or False, got 'true'"),
        ({"exact": None}, "exact must be True or False, got None"),
        ({"quant_method": ["phiquant"]}, "quant_method must be 'phiquant', got ['phiquant']"),
        ({"quant_method": {}}, "quant_method must be 'phiquant', got {}"),
        ({"format_version": "1"}, "format_version must be 1, got '1'"),
        ({"format_version": 1.0}, "format_version must be 1, got 1.0"),
        ({"format_version": None}, "format_version must be 1, got None"),
        ({"format_version": [1]}, "format_version must be 1, got [1]"),
        ({"modules_to_not_convert": 3}, "modules_to_not_convert: expected names or patterns"),
        ({"modules_to_not_convert": {"a": "b"}}, "modules_to_not_convert: expected names or pat"),
        ({"modules_to_not_convert": [["a"]]}, "modules_to_not_convert: expected names or patterns"),
        ({"modules_to_not_convert": "(" * 5000 + ")" * 5000}, "modules_to_not_convert: '((((("),
        ({"modules_to_not_convert": "a{99999999999999999999}"}, "modules_to_not_convert: 'a{9999"),
        ({"modules_to_not_convert": ["*"]}, "modules_to_not_convert: '*' is not a regular exp"),
        ({"measured": []}, "measured: expected numbers by name"),
        ({"measured": {"bits": "many"}}, "measured: expected a finite number for 'bits'"),
        ({"measured": {"bits": float("nan")}}, "measured: expected a finite number for 'bits'"),
        ({"phi_config": {}}, "unknown ['phi_config']"),
        ({"__class__": "os.system"}, "unknown ['__class__']"),
        ({"self": 3}, "unknown ['self']"),
        ({"offload_folder": "/etc"}, "unknown ['offload_folder']"),
        ({"load": "index"}, "unknown ['load']"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_lies_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="quantization_config: .*" + re.escape(message)):
        PhiQuantConfig.from_dict(PhiQuantConfig().to_dict() | change)


@pytest.mark.parametrize("config", [None, [], "phiquant", 3, [["index_bits", 4]]], ids=str)
def test_what_is_no_object(config: Any) -> None:
    with pytest.raises(ValueError, match="quantization_config: expected an object, got"):
        PhiQuantConfig.from_dict(config)


@pytest.mark.parametrize(
    ("field", "value"), [("index_bits", "4"), ("exact", "yes"), ("format_version", 2)]
)
def test_from_pretrained_says_what_is_wrong(tmp_path: Path, field: str, value: Any) -> None:
    llama().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    path.write_text(
        json.dumps(said | {"quantization_config": PhiQuantConfig().to_dict() | {field: value}})
    )
    with pytest.raises(ValueError, match=f"quantization_config: .*{field} must be"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
