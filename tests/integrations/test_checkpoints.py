"""save_pretrained and from_pretrained of compressed models: the same planes, and no others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
)

import phiquant
from benchmarks import zoo
from benchmarks.zoo.packages import MissingPackage
from phiquant import CheckpointError, PhiConfig, PhiQuantConfig, PhiTensor
from tests.integrations import support
from tests.integrations.support import assert_same, compressed_names, llama, prompt
from tests.support import same_bits

EXACT = PhiConfig(exact=True)
ARCHITECTURES = [
    pytest.param(support.llama, AutoModelForCausalLM, id="llama"),
    pytest.param(support.gpt2, AutoModelForCausalLM, id="gpt2"),
    pytest.param(support.mixtral, AutoModelForCausalLM, id="mixtral"),
    pytest.param(support.bert, AutoModelForMaskedLM, id="bert"),
    pytest.param(support.t5, AutoModelForSeq2SeqLM, id="t5"),
    pytest.param(support.whisper, AutoModelForSpeechSeq2Seq, id="whisper"),
    pytest.param(support.vit, AutoModelForImageClassification, id="vit"),
]


def saved(
    folder: Path, config: PhiConfig | None = None, model: Any = None, **how: Any
) -> PreTrainedModel:
    """A model that was compressed in place and saved into ``folder``."""
    model = model or llama()
    phiquant.quantize_(model, config)
    model.save_pretrained(folder, **how)
    return model


def load(folder: Path, auto: Any = AutoModelForCausalLM, **how: Any) -> Any:
    """The model, once transformers found every weight in its place."""
    model, said = auto.from_pretrained(folder, output_loading_info=True, **how)
    assert not any(said.values()), said
    return model


@pytest.mark.parametrize("config", [PhiConfig(), EXACT], ids=["lossy", "exact"])
@pytest.mark.parametrize(("make", "auto"), ARCHITECTURES)
def test_round_trip(
    tmp_path: Path, make: Callable[[], PreTrainedModel], auto: Any, config: PhiConfig
) -> None:
    """Whole, and again as shards that no weight's planes stay together in."""
    original = make().bfloat16() if config.exact else make()
    model = saved(tmp_path, config, original)
    again = load(tmp_path, auto)
    assert_same(model, again)
    assert compressed_names(again)
    again.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert_same(model, load(tmp_path / "shards", auto))
    if config.exact:
        assert phiquant.verify(again).complete


@pytest.mark.parametrize("tier", ["index", "deviation", "exact"])
def test_reads_no_more_planes_than_the_tier_has(tmp_path: Path, tier: str) -> None:
    saved(tmp_path, EXACT, llama().bfloat16())
    with pytest.warns(UserWarning, match="load"):
        loaded = load(tmp_path, quantization_config=PhiQuantConfig(load=tier))
    whole = load(tmp_path)
    with phiquant.at_precision(whole, tier), torch.no_grad():
        expected = whole(**prompt()).logits
    with torch.no_grad():
        assert torch.equal(loaded(**prompt()).logits, expected)
    weight = loaded.lm_head.weight
    assert (weight.deviation_plane is None) == (tier == "index")
    assert weight.is_exact == (tier == "exact")
    loaded.save_pretrained(tmp_path / tier)
    assert_same(loaded, load(tmp_path / tier))
    settings = json.loads((tmp_path / tier / "config.json").read_text())["quantization_config"]
    assert settings["deviation_bits"] == (0 if tier == "index" else 4)
    assert settings["exact"] == (tier == "exact")
    assert "load" not in settings


def test_a_tier_that_is_not_there(tmp_path: Path) -> None:
    saved(tmp_path)
    with (
        pytest.warns(UserWarning, match="load"),
        pytest.raises(CheckpointError, match=r"model\.safetensors: .*weight: has no remainder"),
    ):
        load(tmp_path, quantization_config=PhiQuantConfig(load="exact"))


def test_a_tier_of_what_is_not_compressed(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load='index' reads a compressed checkpoint"):
        load(tmp_path, quantization_config=PhiQuantConfig(load="index"))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_ties(tmp_path: Path, tied: bool) -> None:
    saved(tmp_path, model=llama(tie_word_embeddings=tied))
    keys = phiquant.open(tmp_path)
    assert ("lm_head.weight" in keys) == (not tied)
    model = load(tmp_path)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert isinstance(model.lm_head.weight, PhiTensor)


def test_compressed_while_loading_then_saved(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "plain")
    config = PhiQuantConfig(modules_to_not_convert=["layers.0"])
    model = load(tmp_path / "plain", quantization_config=config)
    model.save_pretrained(tmp_path / "compressed")
    again = load(tmp_path / "compressed")
    assert_same(model, again)
    assert again.config.quantization_config.modules_to_not_convert == ["layers.0"]
    assert (
        again.config.quantization_config.measured == model.hf_quantizer.quantization_config.measured
    )
    left = [s for s in again.hf_quantizer.report.skipped if len(s.shape) == 2]
    assert {s.names[0].split(".")[2] for s in left} == {"0"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_another_dtype_changes_what_the_planes_decode_to(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = saved(tmp_path)
    loaded = load(tmp_path, dtype=dtype)
    assert loaded.lm_head.weight.dtype == dtype
    assert loaded.lm_head.weight.stored_dtype == torch.float32
    assert torch.equal(loaded.lm_head.weight.dequantize(), model.lm_head.weight.dequantize(dtype))


def test_generates_the_same(tmp_path: Path) -> None:
    model = saved(tmp_path)
    how = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(
        model.generate(**prompt(), **how), load(tmp_path).generate(**prompt(), **how)
    )


@pytest.mark.parametrize(
    "device_map", ["cpu", "auto", {"": "cpu"}, {"model": "disk", "lm_head": "cpu"}]
)
def test_device_maps(tmp_path: Path, device_map: Any) -> None:
    """On disk is where mapped planes are anyway."""
    model = saved(tmp_path, model=llama(tie_word_embeddings=False))
    assert_same(model, load(tmp_path, device_map=device_map).cpu())


def test_a_base_model_from_the_whole_and_the_other_way_round(tmp_path: Path) -> None:
    model = saved(tmp_path / "whole", model=support.bert())
    base = AutoModel.from_pretrained(tmp_path / "whole")
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(base.get_parameter(name), model.get_parameter(f"bert.{name}"))
    base.save_pretrained(tmp_path / "base")
    whole, said = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", output_loading_info=True
    )
    assert torch.equal(whole.get_parameter(f"bert.{name}"), model.get_parameter(f"bert.{name}"))
    assert set(said["missing_keys"]) == {"classifier.weight", "classifier.bias"}


def test_saved_without_its_planes_once_it_is_plain_again(tmp_path: Path) -> None:
    saved(tmp_path / "compressed")
    plain = load(tmp_path / "compressed").dequantize()
    plain.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    again = load(tmp_path / "plain")
    assert not compressed_names(again)
    assert_same(plain, again)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "smollm2", "whisper"])
def test_real_weights_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    """Through files of several shards; the shallow tiers are those of the model in memory."""
    model = real(name).bfloat16()
    original = {key: p.detach().clone() for key, p in model.named_parameters()}
    saved(tmp_path, EXACT, model, max_shard_size="20MB")
    again = load(tmp_path, type(model))
    assert phiquant.verify(again).complete
    for key, parameter in again.named_parameters():
        value = parameter.dequantize() if isinstance(parameter, PhiTensor) else parameter.detach()
        assert same_bits(value, original[key]), key
    with pytest.warns(UserWarning, match="load"):
        index = load(tmp_path, type(model), quantization_config=PhiQuantConfig(load="index"))
    assert_same(index, phiquant.view(again, "index"))


@pytest.mark.slow
def test_a_real_model_of_another_library(tmp_path: Path) -> None:
    """EfficientNet: convolutions, some of them left alone, and a linear layer."""
    model = real("efficientnet")
    phiquant.quantize_(model)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(image)
    phiquant.save(model, tmp_path / "model.safetensors")
    again = phiquant.load(real("efficientnet"), tmp_path / "model.safetensors")
    assert compressed_names(again) == compressed_names(model)
    with torch.no_grad():
        assert torch.equal(again(image), expected)


def real(name: str) -> Any:
    module = zoo.model(name)
    try:
        return module.load().eval()
    except MissingPackage as missing:
        pytest.skip(str(missing))


# --- damage -----------------------------------------------------------------------------------


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a saved model; the metadata stays."""
    file = folder / "model.safetensors"
    metadata = phiquant.open(file).metadata
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata=metadata)


DAMAGE = {
    "a header is gone": (lambda t: t.pop("lm_head._weight_header"), "lm_head.weight: its header"),
    "a plane is gone": (lambda t: t.pop("lm_head._weight_scale"), "lm_head.weight: .*'scale'"),
    "a weight is gone": (
        lambda t: [t.pop(key) for key in list(t) if key.startswith("lm_head.")],
        "expected .* compressed weights",
    ),
    "a scale is none": (
        lambda t: t["lm_head._weight_scale"].fill_(0x7C00),
        "lm_head.weight: scale: a word",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_an_error_and_never_a_random_weight(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], said: str
) -> None:
    saved(tmp_path, model=llama(tie_word_embeddings=False))
    edited(tmp_path, damage)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{said}"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_model_of_another_size(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"intermediate_size": 320}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"mlp.*weight: the model wants \(64, 320\)"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# --- the card ---------------------------------------------------------------------------------


def test_the_card_says_bits_and_error(tmp_path: Path) -> None:
    model = saved(tmp_path)
    text = phiquant.write_model_card(model, tmp_path).read_text()
    report = model.hf_quantizer.report
    error = report.relative_error
    assert f"| {report.bits_per_weight:.2f} |" in text
    assert f"| {error:.2e} |" in text
    assert "AutoModel" not in text
    assert "LlamaForCausalLM.from_pretrained" in text
    assert os.fspath(tmp_path) not in text
    again = load(tmp_path)
    with pytest.raises(FileExistsError):
        phiquant.write_model_card(again, tmp_path)
    again.save_pretrained(tmp_path / "again")
    assert f"| {error:.2e} |" in phiquant.write_model_card(again, tmp_path / "again").read_text()


def test_a_card_is_for_compressed_models() -> None:
    with pytest.raises(ValueError, match="is no transformers model that phiquant compressed"):
        phiquant.write_model_card(llama(), "nowhere")
