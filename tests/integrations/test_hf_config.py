"""PhiQuantConfig: PhiConfig's arguments, defaults and errors, as transformers wants them."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from transformers.quantizers.auto import AutoQuantizationConfig

from phiquant import PhiConfig, PhiQuantConfig


def test_has_the_arguments_and_defaults_of_phiconfig() -> None:
    ours = inspect.signature(PhiQuantConfig).parameters
    theirs = inspect.signature(PhiConfig).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)
    assert PhiQuantConfig().phi_config == PhiConfig()


def test_a_file_says_nothing_of_folders_and_cannot_name_one() -> None:
    config = PhiQuantConfig(offload_folder="somewhere")
    assert config.offload_folder == "somewhere"
    assert "offload_folder" not in config.to_dict()
    assert "offload_folder" not in config.to_json_string()
    with pytest.raises(ValueError, match=r"unknown \['offload_folder'\]"):
        PhiQuantConfig.from_dict(config.to_dict() | {"offload_folder": "elsewhere"})


def test_phi_config_takes_every_setting() -> None:
    settings = {
        "index_bits": 5,
        "deviation_bits": 8,
        "group_size": 128,
        "grid": "golden",
        "fit": "index",
        "exact": True,
    }
    assert PhiQuantConfig(**settings).phi_config == PhiConfig(**settings)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"index_bits": 7}, ValueError, "index_bits must be one of"),
        ({"index_bits": True}, ValueError, "index_bits must be one of"),
        ({"deviation_bits": "4"}, ValueError, "deviation_bits must be one of"),
        ({"group_size": 48}, ValueError, "group_size must be one of"),
        ({"grid": "silver"}, ValueError, "grid must be one of"),
        ({"fit": "best"}, ValueError, "fit must be one of"),
        ({"fit": "exact"}, ValueError, "fit='exact' .* needs exact=True"),
        ({"exact": 1}, ValueError, "exact must be True or False"),
        ({"exact": True, "deviation_bits": 0}, ValueError, "deviation_bits must be 2, 4 or 8"),
        ({"modules_to_not_convert": ["lm_head", 3]}, TypeError, "modules_to_not_convert.*got 3"),
        ({"modules_to_not_convert": [""]}, TypeError, "modules_to_not_convert.*got ''"),
        ({"modules_to_not_convert": "a("}, ValueError, "modules_to_not_convert: 'a\\('"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refuses_what_is_out_of_range(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PhiQuantConfig(**arguments)


def test_survives_json_and_transformers_own_reading() -> None:
    config = PhiQuantConfig(5, 8, 128, "golden", "deviation", True, ["lm_head"])
    written = json.loads(config.to_json_string())
    assert written["quant_method"] == "phiquant"
    assert written["format_version"] == 1
    again = AutoQuantizationConfig.from_dict(written)
    assert type(again) is PhiQuantConfig
    assert again.to_dict() == config.to_dict()


def test_from_dict_hands_back_what_it_does_not_know_as_keyword() -> None:
    written = PhiQuantConfig().to_dict()
    config, rest = PhiQuantConfig.from_dict(
        written, return_unused_kwargs=True, index_bits=3, revision="main"
    )
    assert (config.index_bits, rest) == (3, {"revision": "main"})
    assert written == PhiQuantConfig().to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method must be 'phiquant', got 'gptq'"),
        ({"format_version": 2}, "format_version must be 1, got 2"),
        ({"format_version": True}, "format_version must be 1, got True"),
        ({"bits": 4}, r"unknown \['bits'\]"),
        ({"group_size": 7}, "group_size must be one of"),
    ],
    ids=str,
)
def test_from_dict_refuses_what_it_cannot_keep(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhiQuantConfig.from_dict(PhiQuantConfig().to_dict() | change)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head.weight", "lm_head", True),
        ("lm_head", "model.lm_head_norm", False),
        ("self_attn", "model.layers.3.self_attn.q_proj", True),
        ("model.layers.1", "model.layers.1.mlp.up_proj", True),
        ("layers.1", "model.layers.1.mlp.up_proj", True),
        ("layers.1", "model.layers.11.mlp.up_proj", False),
        (r"layers\.[01]\.mlp", "model.layers.0.mlp.up_proj", True),
        (r"layers\.[01]\.mlp", "model.layers.2.mlp.up_proj", False),
        ("q_proj|k_proj", "model.layers.2.self_attn.k_proj", True),
        ("proj", "model.layers.2.self_attn.k_proj", False),
        (".*proj", "model.layers.2.self_attn.k_proj", True),
    ],
)
def test_patterns_match_whole_segments(pattern: str, name: str, matches: bool) -> None:
    config = PhiQuantConfig(modules_to_not_convert=["nothing", pattern])
    assert config.leaves_out(name) == (pattern if matches else None)
