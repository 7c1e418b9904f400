"""Compress while transformers loads: the same planes as quantize_, and a model that runs."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    CompileConfig,
    PreTrainedModel,
)

from benchmarks.zoo import smollm2
from phiquant import PhiQuantConfig, PhiTensor, quantize_, verify
from tests.integrations import support
from tests.integrations.support import assert_same, compressed_names, llama, load, prompt, saved
from tests.support import noise, same_bits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(llama(), tmp_path / "llama")


def both(
    folder: Path, auto: Any = None, config: PhiQuantConfig | None = None, **how: Any
) -> tuple[Any, Any]:
    """Compressed while loading, and loaded and then compressed, with the default settings."""
    auto, config = auto or support.AutoModelForCausalLM, config or PhiQuantConfig()
    loaded = auto.from_pretrained(folder, quantization_config=config, **how)
    plain = auto.from_pretrained(folder, **how)
    report = quantize_(plain, config.phi_config)
    assert loaded.hf_quantizer.report == report
    return loaded, plain


# --- the same as quantize_ --------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
def test_is_what_quantize_makes_of_the_loaded_model(tmp_path: Path, dtype: str, tied: bool) -> None:
    model = llama(tie_word_embeddings=tied).to(torch.bfloat16)
    loaded, plain = both(saved(model, tmp_path), dtype=dtype)
    assert_same(loaded, plain)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    wanted = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    assert loaded.lm_head.weight.stored_dtype == loaded.lm_head.weight.dtype == wanted


@pytest.mark.parametrize(
    ("make", "auto", "fewest"),
    [
        pytest.param(support.bert, AutoModelForMaskedLM, 16, id="bert"),
        pytest.param(support.t5, AutoModelForSeq2SeqLM, 33, id="t5"),
        pytest.param(support.whisper, AutoModelForSpeechSeq2Seq, 21, id="whisper"),
        pytest.param(support.gpt2, None, 10, id="gpt2"),
        pytest.param(support.vit, AutoModelForImageClassification, 8, id="vit"),
        pytest.param(support.mixtral, None, 8, id="mixtral"),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_architectures(
    tmp_path: Path, make: Callable[[], PreTrainedModel], auto: Any, fewest: int, dtype: str
) -> None:
    loaded, plain = both(saved(make(), tmp_path), auto, dtype=dtype)
    assert_same(loaded, plain)
    assert len(compressed_names(loaded)) >= fewest


def test_base_model_from_the_file_of_a_model_with_a_head(tmp_path: Path) -> None:
    folder = saved(support.bert(), tmp_path)
    loaded, plain = both(folder, AutoModel, add_pooling_layer=False)
    assert_same(loaded, plain)
    assert "embeddings.word_embeddings.weight" in compressed_names(loaded)


def test_t5_keeps_one_copy_of_an_embedding_that_four_modules_share(tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(
        saved(support.t5(), tmp_path), quantization_config=PhiQuantConfig()
    )
    shared = [model.encoder.embed_tokens, model.decoder.embed_tokens, model.lm_head]
    assert isinstance(model.shared.weight, PhiTensor)
    assert all(module.weight is model.shared.weight for module in shared)


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}], ids=str)
def test_device_maps(folder: Path, device_map: Any) -> None:
    loaded, plain = both(folder, device_map=device_map)
    assert_same(loaded, plain)
    automatic = "cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu"
    assert {parameter.device.type for parameter in loaded.parameters()} == {automatic}


def test_sharded_checkpoint(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_same(*both(folder))


def test_every_setting_reaches_the_planes(folder: Path) -> None:
    config = PhiQuantConfig(5, 2, 32, "golden", "index")
    loaded, plain = load(folder, quantization_config=config), load(folder)
    quantize_(plain, config.phi_config)
    assert_same(loaded, plain)
    weight = loaded.model.layers[0].mlp.up_proj.weight
    assert (weight.index_bits, weight.deviation_bits, weight.group_size) == (5, 2, 32)
    assert (weight.grid, weight.fit) == ("golden", "index")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_embedding_and_head_keep_four_deviation_bits(tmp_path: Path, tied: bool) -> None:
    folder = saved(llama(tie_word_embeddings=tied), tmp_path)
    config = PhiQuantConfig(deviation_bits=0)
    loaded, plain = load(folder, quantization_config=config), load(folder)
    quantize_(plain, config.phi_config)
    assert_same(loaded, plain)
    assert loaded.model.embed_tokens.weight.deviation_bits == 4
    assert loaded.lm_head.weight.deviation_bits == 4
    assert loaded.model.layers[0].mlp.up_proj.weight.deviation_bits == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_exact_model_is_the_one_in_the_file(tmp_path: Path, tied: bool, dtype: str) -> None:
    folder = saved(llama(tie_word_embeddings=tied).to(torch.bfloat16), tmp_path)
    loaded, _ = both(folder, config=PhiQuantConfig(exact=True), dtype=dtype)
    plain = load(folder, dtype=dtype)
    assert verify(loaded).complete
    weight = loaded.model.layers[0].mlp.up_proj.weight
    assert (weight.dtype, weight.stored_dtype) == (getattr(torch, dtype), torch.bfloat16)
    for name in compressed_names(loaded):
        assert same_bits(loaded.get_parameter(name).dequantize(), plain.get_parameter(name).data)
    with torch.no_grad():
        ours, theirs = loaded(**prompt()).logits, plain(**prompt()).logits
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_an_exact_weight_may_hold_anything_and_may_grow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = llama(tie_word_embeddings=True).to(torch.bfloat16)
    mlp = model.model.layers[0].mlp
    mlp.up_proj.weight.data[0, 0] = float("nan")
    mlp.gate_proj.weight.data.copy_(noise(*mlp.gate_proj.weight.shape))
    model.lm_head.weight.data.copy_(noise(*model.lm_head.weight.shape))
    folder = saved(model, tmp_path)
    with caplog.at_level(logging.WARNING, "phiquant"):
        loaded, _ = both(folder, config=PhiQuantConfig(exact=True), dtype="bfloat16")
    loaded_mlp = loaded.model.layers[0].mlp
    assert same_bits(loaded_mlp.up_proj.weight.dequantize(), mlp.up_proj.weight.data)
    assert same_bits(loaded_mlp.gate_proj.weight.data, mlp.gate_proj.weight.data)
    assert type(loaded_mlp.gate_proj.weight) is nn.Parameter
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    lines = [record.getMessage() for record in caplog.records]
    for name in ("gate_proj.weight", "embed_tokens.weight"):
        (line,) = (line for line in lines if name in line)
        assert "its exact form would grow to" in line


def test_config_as_a_dictionary(folder: Path) -> None:
    written = json.loads(PhiQuantConfig(index_bits=3).to_json_string())
    loaded = load(folder, quantization_config=written)
    assert loaded.lm_head.weight.index_bits == 3


def test_a_weight_that_would_not_shrink_is_left_alone_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = llama(hidden_size=16, vocab_size=1000, head_dim=16).to(torch.bfloat16)
    with caplog.at_level(logging.WARNING, "phiquant"):
        loaded, plain = both(saved(model, tmp_path), dtype="bfloat16")
    assert_same(loaded, plain)
    assert not isinstance(loaded.lm_head.weight, PhiTensor)
    (line,) = [r.getMessage() for r in caplog.records if "embed_tokens" in r.getMessage()]
    assert "would not shrink" in line


# --- what is left out -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_out", "gone"),
    [
        ("self_attn", {"self_attn"}),
        (["layers.0", "down_proj"], {"layers.0.", "down_proj"}),
        ([r"layers\.\d+\.mlp"], {".mlp."}),
        (["lm_head"], {"lm_head", "embed_tokens"}),
        (["embed_tokens"], {"lm_head", "embed_tokens"}),
    ],
    ids=str,
)
def test_modules_to_not_convert(
    folder: Path, left_out: Any, gone: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = PhiQuantConfig(modules_to_not_convert=left_out)
    with caplog.at_level(logging.INFO, "phiquant"):
        loaded, plain = load(folder, quantization_config=config), load(folder)
    quantize_(plain, filter_fn=lambda module, name: not config.leaves_out(name))
    assert_same(loaded, plain)
    everything = compressed_names(load(folder, quantization_config=PhiQuantConfig()))
    left = {name for name in everything if any(part in name for part in gone)}
    assert left
    assert compressed_names(loaded) == everything - left
    reasons = {entry.names[0]: entry.reason for entry in loaded.hf_quantizer.report.skipped}
    assert all(
        "modules_to_not_convert" in reasons[name] for name in left if name != "lm_head.weight"
    )
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_untied_head_can_be_left_out_alone(tmp_path: Path) -> None:
    folder = saved(llama(tie_word_embeddings=False), tmp_path)
    loaded = load(folder, quantization_config=PhiQuantConfig(modules_to_not_convert="lm_head"))
    assert not isinstance(loaded.lm_head.weight, PhiTensor)
    assert isinstance(loaded.model.embed_tokens.weight, PhiTensor)


def test_a_pattern_that_matches_nothing_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(folder, quantization_config=PhiQuantConfig(modules_to_not_convert=["lm_haed", "mlp"]))
    (line,) = [r.getMessage() for r in caplog.records if r.name == "phiquant"]
    assert "'lm_haed' matches no module" in line


def test_layers_without_support_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = support.mixtral(num_hidden_layers=3)
    load(saved(model, tmp_path), quantization_config=PhiQuantConfig())
    lines = [r.getMessage() for r in caplog.records if r.name == "phiquant"]
    assert len(lines) == 1
    assert "model.layers.0.mlp.gate.weight and 2 more: MixtralTopKRouter is not a" in lines[0]


def test_a_head_that_the_file_does_not_have_stays_plain_for_training(tmp_path: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(
        saved(support.bert(), tmp_path), num_labels=300, quantization_config=PhiQuantConfig()
    )
    assert loaded.classifier.weight.requires_grad
    assert not isinstance(loaded.classifier.weight, PhiTensor)
    assert isinstance(loaded.bert.pooler, nn.Module)
    assert not isinstance(loaded.bert.pooler.dense.weight, PhiTensor)
    reasons = {entry.names[0]: entry.reason for entry in loaded.hf_quantizer.report.skipped}
    assert reasons["classifier.weight"] == "not in the checkpoint: freshly made"


# --- files that are not as they should be -----------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


def test_both_copies_of_a_tied_weight_in_the_file_become_one(folder: Path) -> None:
    def add_head(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    rewrite(folder, add_head)
    loaded, plain = both(folder)
    assert_same(loaded, plain)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_head_that_differs_from_the_embedding_it_should_be_tied_to(folder: Path) -> None:
    def add_head(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()

    rewrite(folder, add_head)
    loaded, plain = both(folder)
    assert_same(loaded, plain)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight


def test_only_the_head_of_a_tied_pair_in_the_file(folder: Path) -> None:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")

    rewrite(folder, rename)
    loaded, plain = both(folder)
    assert_same(loaded, plain)
    assert isinstance(loaded.model.embed_tokens.weight, PhiTensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_weights_that_are_not_finite_are_all_named(folder: Path, value: float) -> None:
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"]

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        for name in names:
            weights[name][1, 2] = value

    rewrite(folder, spoil)
    with pytest.raises(ValueError, match="holds NaN or infinity") as caught:
        load(folder, quantization_config=PhiQuantConfig())
    assert all(name in str(caught.value) for name in names)
    loaded = load(
        folder, quantization_config=PhiQuantConfig(modules_to_not_convert=["up_proj", "k_proj"])
    )
    assert isinstance(loaded.model.layers[0].mlp.down_proj.weight, PhiTensor)


def test_a_weight_of_another_shape_is_an_error(folder: Path) -> None:
    def cut(weights: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        weights[name] = weights[name][:-1].contiguous()

    rewrite(folder, cut)
    with pytest.raises((RuntimeError, ValueError), match=r"size|shape"):
        load(folder, quantization_config=PhiQuantConfig())


# --- the loaded model -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 5},
        {"num_beams": 3},
        {"do_sample": False, "cache_implementation": "static"},
    ],
    ids=["greedy", "sampling", "beams", "static cache"],
)
def test_generates_what_the_decoded_model_does(folder: Path, how: dict[str, Any]) -> None:
    loaded = load(folder, quantization_config=PhiQuantConfig())
    plain = load(folder, quantization_config=PhiQuantConfig()).dequantize()
    torch.manual_seed(1)
    ours = loaded.generate(**prompt(), max_new_tokens=8, min_new_tokens=8, **how)
    torch.manual_seed(1)
    theirs = plain.generate(**prompt(), max_new_tokens=8, min_new_tokens=8, **how)
    assert ours.shape == (2, 15)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_logits_are_those_of_the_decoded_model(folder: Path, dtype: torch.dtype) -> None:
    loaded = load(folder, quantization_config=PhiQuantConfig(), dtype=dtype)
    plain = copy.deepcopy(loaded).dequantize()
    with torch.no_grad():
        ours, theirs = loaded(**prompt()).logits, plain(**prompt()).logits
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, atol=20 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize("make", [support.t5, support.whisper], ids=["t5", "whisper"])
def test_encoder_and_decoder_generate(tmp_path: Path, make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    loaded = type(model).from_pretrained(
        saved(model, tmp_path), quantization_config=PhiQuantConfig()
    )
    plain = copy.deepcopy(loaded).dequantize()
    sound = {"input_features": torch.randn(2, 20, 40)}
    inputs = sound if make is support.whisper else prompt()
    how = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(loaded.generate(**inputs, **how), plain.generate(**inputs, **how))


def test_bert_runs_and_a_gradient_reaches_its_input(tmp_path: Path) -> None:
    loaded = AutoModelForMaskedLM.from_pretrained(
        saved(support.bert(), tmp_path), quantization_config=PhiQuantConfig()
    )
    hidden = torch.randn(2, 7, 64, requires_grad=True)
    loaded(inputs_embeds=hidden).logits.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16], ids=str)
def test_dequantize_gives_a_plain_model_back(
    folder: Path, tmp_path: Path, dtype: torch.dtype | None
) -> None:
    loaded = load(folder, quantization_config=PhiQuantConfig(), dtype=torch.bfloat16)
    decoded = loaded.lm_head.weight.dequantize(dtype)
    plain = loaded.dequantize(dtype)
    assert plain is loaded
    assert not compressed_names(plain)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert torch.equal(plain.lm_head.weight, decoded)
    assert {p.dtype for p in plain.parameters()} == {dtype or torch.bfloat16}
    again = load(saved(plain, tmp_path / "plain"))
    assert not hasattr(again, "hf_quantizer")
    assert_same(again, plain)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_forward_has_no_graph_break(folder: Path, backend: str) -> None:
    loaded = load(folder, quantization_config=PhiQuantConfig())
    compiled = torch.compile(loaded.forward, fullgraph=True, backend=backend)
    with torch.no_grad():
        ours = compiled(**prompt(), use_cache=False).logits
        theirs = loaded(**prompt(), use_cache=False).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_generates_compiled_with_a_static_cache(folder: Path, backend: str) -> None:
    loaded = load(folder, quantization_config=PhiQuantConfig())
    how = {"do_sample": False, "max_new_tokens": 6, "cache_implementation": "static"}
    eager = loaded.generate(**prompt(), **how)
    calls = CompileConfig(fullgraph=True, backend=backend, mode=None)
    calls._compile_all_devices = True  # transformers compiles on accelerators only
    compiled = loaded.generate(**prompt(), **how, compile_config=calls)
    assert hasattr(loaded, "_compiled_call")
    assert torch.equal(compiled, eager)


@pytest.mark.slow
def test_smollm2_continues_as_the_decoded_model_does(tmp_path: Path) -> None:
    folder = smollm2.save(tmp_path)
    loaded = load(folder, quantization_config=PhiQuantConfig())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    report = loaded.hf_quantizer.report
    assert report.bits_per_weight == pytest.approx(8.25)
    assert max(entry.relative_error for entry in report.compressed) < 0.01
    inputs = smollm2.tokenizer()("The capital of France is", return_tensors="pt")
    how = {"max_new_tokens": 16, "do_sample": False}
    ours = loaded.generate(**inputs, **how)
    assert "Paris" in smollm2.tokenizer().decode(ours[0])
    assert torch.equal(ours, loaded.dequantize().generate(**inputs, **how))
