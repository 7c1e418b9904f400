"""The command gives the planes of from_pretrained and save, for every kind of model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import phiquant
from phiquant import PhiQuantConfig
from tests.cli.support import assert_same_files, run
from tests.integrations import support

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": support.llama,
    "bert": support.bert,
    "t5": support.t5,
    "whisper": support.whisper,
    "gpt2": support.gpt2,
    "vit": support.vit,
    "mixtral": support.mixtral,
}


@pytest.mark.parametrize("name", MODELS)
def test_planes_are_those_of_from_pretrained_and_save(tmp_path: Path, name: str) -> None:
    model = MODELS[name]()
    support.saved(model, tmp_path / "plain", max_shard_size="150KB")
    loaded: Any = type(model).from_pretrained(
        tmp_path / "plain", quantization_config=PhiQuantConfig(exact=True)
    )
    phiquant.save(loaded, tmp_path / "saved")
    run("compress", tmp_path / "plain", tmp_path / "made", "--exact", "--max-shard-size", "100KB")
    assert_same_files(tmp_path / "made", tmp_path / "saved")
    again: Any = type(model).from_pretrained(tmp_path / "made")
    support.assert_same(again, loaded)


def test_a_shared_weight_that_is_stored_twice_is_stored_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = support.saved(support.llama(), tmp_path / "plain")
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    run("compress", folder, tmp_path / "made")
    made = phiquant.open(tmp_path / "made")
    assert len(made.tied) == 1
    assert {*made.tied, *made.tied.values()} == {"lm_head.weight", "model.embed_tokens.weight"}
    assert not made.tied.keys() & set(made)
    again = support.load(tmp_path / "made")
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_two_weights_under_shared_names_are_kept_apart(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = support.saved(support.llama(), tmp_path / "plain")
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"] * 2
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    run("compress", folder, tmp_path / "made", "--exact")
    made = phiquant.open(tmp_path / "made")
    assert made.tied == {}
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(made[name].dequantize(), state[name])


def test_a_weight_that_the_source_lacks_is_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = support.saved(support.llama(), tmp_path / "plain")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.0.self_attn.q_proj.weight"], state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    result = run("compress", folder, tmp_path / "made")
    assert "not stored: model.layers.0.self_attn.q_proj.weight, model.norm.weight" in result.output
    made = phiquant.open(tmp_path / "made")
    assert "model.norm.weight" not in made
    assert "model.layers.0.self_attn.q_proj.weight" not in made


def test_companions_and_config(tmp_path: Path) -> None:
    folder = support.saved(support.llama().bfloat16(), tmp_path / "plain")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    (folder / "README.md").write_text("of the original")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "old.bin").write_bytes(b"pickle")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"a": 1}')
    result = run(
        "compress", folder, tmp_path / "made", "--skip", "lm_head", "--json", "--no-progress"
    )
    said = json.loads(result.stdout)
    assert said["not_copied"] == ["modeling.py", "old.bin"]
    names = {str(p.relative_to(tmp_path / "made")) for p in (tmp_path / "made").rglob("*")}
    assert names == {
        "1_Pooling",
        "1_Pooling/config.json",
        "LICENSE",
        "README.md",
        "README.original.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    settings = config["quantization_config"]
    assert settings["quant_method"] == "phiquant"
    assert settings["modules_to_not_convert"] == ["lm_head"]
    assert settings["measured"]["bits_per_weight"] == pytest.approx(
        said["bits_per_weight"], abs=1e-3
    )
    assert 0 < settings["measured"]["relative_error"] < 0.02
    card = (tmp_path / "made" / "README.md").read_text()
    assert f"| {settings['measured']['relative_error']:.2e} |" in card
    assert (tmp_path / "made" / "README.original.md").read_text() == "of the original"
    mode = (tmp_path / "made" / "model.safetensors").stat().st_mode
    assert mode == (tmp_path / "made" / "config.json").stat().st_mode


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
def test_dry_run_is_what_comes_out(tmp_path: Path, exact: bool) -> None:
    folder = support.saved(support.t5(), tmp_path / "plain")
    options = ["--exact"] if exact else []
    arguments = ["compress", folder, tmp_path / "made", "--json", "--no-progress", *options]
    planned = json.loads(run(*arguments, "--dry-run").stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]
    done = json.loads(run(*arguments).stdout)

    def names(report: dict[str, Any], kind: str) -> list[list[str]]:
        return [entry["names"] for entry in report[kind]]

    assert names(planned, "compressed") == names(done, "compressed")
    assert names(planned, "left_alone") == names(done, "left_alone")
    assert planned["original_bytes"] == done["original_bytes"]
    if exact:
        assert all(entry["estimated"] for entry in planned["compressed"])
    else:
        assert planned["stored_bytes"] == done["stored_bytes"]


def test_dry_run_says_why_and_reads_no_weight(tmp_path: Path) -> None:
    folder = support.saved(support.llama(), tmp_path / "plain")
    result = run("compress", folder, tmp_path / "made", "--dry-run", "--skip", "mlp")
    assert "left out by --skip ('mlp')" in result.output
    assert "model.embed_tokens.weight = lm_head.weight" in result.output


def test_nan_ends_it_with_the_name(tmp_path: Path) -> None:
    model = support.llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    folder = support.saved(model, tmp_path / "plain")
    result = run("compress", folder, tmp_path / "made", code=1)
    assert "model.layers.1.mlp.up_proj.weight: holds NaN" in result.output
    assert not (tmp_path / "made").exists()


def test_a_model_that_transformers_does_not_know(tmp_path: Path) -> None:
    folder = support.saved(support.llama(), tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    for names, message in ((["Alien"], "has no model 'Alien'"), (None, "expected the name")):
        (folder / "config.json").write_text(json.dumps(config | {"architectures": names}))
        assert message in run("compress", folder, tmp_path / "made", code=1).output


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="phiquant")
