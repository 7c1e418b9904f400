"""Tiny models of many architectures: nothing large is left out in silence, and outputs agree."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.integrations import support
from tests.support import relative, same_bits

LARGE = 16384  # bytes
DECODER: dict[str, Any] = {
    "vocab_size": 130,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {name: DECODER[name] for name in list(DECODER)[1:5]}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}


def decoder(name: str, **changes: Any) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**(DECODER | changes))
    return getattr(transformers, f"{name}ForCausalLM")(config)


def clip() -> nn.Module:
    vision = transformers.CLIPVisionConfig(**ENCODER, image_size=32, patch_size=8).to_dict()
    text = transformers.CLIPTextConfig(**DECODER).to_dict()
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    return transformers.CLIPModel(config)


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128], depths=[1, 1], num_labels=40
    )
    return transformers.ResNetForImageClassification(config)


def efficientnet() -> nn.Module:
    config = transformers.EfficientNetConfig(
        image_size=32,
        width_coefficient=0.5,
        depth_coefficient=0.2,
        hidden_dim=640,
        num_labels=40,
    )
    model = transformers.EfficientNetForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 32, 32))  # statistics without which outputs vanish
    return model


def words() -> dict[str, Tensor]:
    return support.prompt()


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def sound() -> dict[str, Tensor]:
    start = torch.tensor([[1, 5, 9]])
    return {"input_features": torch.randn(1, 20, 40), "decoder_input_ids": start}


def pairs() -> dict[str, Tensor]:
    return words() | {"decoder_input_ids": words()["input_ids"]}


# name: (model, inputs, kinds of parameters that are to be compressed)
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]], str]] = {
    "gpt2": (support.gpt2, words, "wte wpe c_attn c_proj c_fc"),
    "llama": (support.llama, words, "embed_tokens q_proj k_proj o_proj up_proj down_proj"),
    "qwen2": (lambda: decoder("Qwen2"), words, "embed_tokens lm_head q_proj gate_proj down_proj"),
    "qwen3": (lambda: decoder("Qwen3", head_dim=16), words, "lm_head q_proj gate_proj down_proj"),
    "qwen2_moe": (
        lambda: decoder("Qwen2Moe", **MOE, shared_expert_intermediate_size=96),
        words,
        "experts.gate_up_proj experts.down_proj shared_expert.up_proj q_proj",
    ),
    "qwen3_moe": (
        lambda: decoder("Qwen3Moe", **MOE, head_dim=16),
        words,
        "experts.gate_up_proj experts.down_proj q_proj lm_head",
    ),
    "gemma": (lambda: decoder("Gemma", head_dim=16), words, "embed_tokens v_proj gate_proj"),
    "gemma2": (
        lambda: decoder("Gemma2", head_dim=16, query_pre_attn_scalar=16),
        words,
        "embed_tokens q_proj gate_proj down_proj",
    ),
    "mixtral": (support.mixtral, words, "experts.gate_up_proj experts.down_proj q_proj lm_head"),
    "gpt_oss": (
        lambda: decoder("GptOss", head_dim=16, num_local_experts=4, num_experts_per_tok=2),
        words,
        "experts.gate_up_proj experts.down_proj q_proj lm_head",
    ),
    "t5": (support.t5, pairs, "shared SelfAttention.q EncDecAttention.k wi wo"),
    "bert": (support.bert, words, "word_embeddings position_embeddings query dense"),
    "vit": (support.vit, images, "projection classifier"),
    "clip": (clip, lambda: words() | images(), "patch_embedding token_embedding q_proj fc1"),
    "whisper": (support.whisper, sound, "conv1 conv2 embed_tokens q_proj fc1"),
    "resnet": (resnet, images, "convolution classifier.1"),
    "efficientnet": (efficientnet, images, "expand_conv project_conv reduce classifier"),
}


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What the model is for, as one tensor; a slow path is an error."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has no compressed form")
        result = model(**inputs)
    logits = getattr(result, "logits", None)
    return torch.cat([result.text_embeds, result.image_embeds]) if logits is None else logits


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    make, inputs, kinds = ARCHITECTURES[request.param]
    return make().eval(), inputs(), kinds.split()


@pytest.mark.parametrize(("exact", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_architectures(
    architecture: tuple[nn.Module, dict[str, Tensor], list[str]], exact: bool, dtype: str
) -> None:
    model, inputs, kinds = architecture
    model = model.to(getattr(torch, dtype)).float()  # exact weights are kept as what they hold
    plain, before = copy.deepcopy(model), outputs(model, inputs)
    preview = phiquant.preview(model, PhiConfig(exact=exact))
    report = phiquant.quantize_(model, PhiConfig(exact=exact))
    assert [c.names for c in preview.compressed] == [c.names for c in report.compressed]

    names = [name for entry in report.compressed for name in entry.names]
    for kind in kinds:
        assert any(kind in name for name in names), kind
    told = {name: entry.reason for entry in report.skipped for name in entry.names}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert isinstance(parameter, PhiTensor) == (name in names)
        assert isinstance(parameter, PhiTensor) or told[name]
        if parameter.nbytes >= LARGE and name not in names:
            assert f"  {name}  " in str(report), name

    after = outputs(model, inputs)
    if not exact:
        assert 1e-4 < relative(after, before) < 0.05
        assert all(2e-3 < c.relative_error < 7e-3 for c in report.compressed)
        return
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert phiquant.verify(model).complete
    for name in names:
        decoded = model.get_parameter(name).dequantize()
        assert same_bits(decoded, plain.get_parameter(name).detach()), name


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
def test_experts_in_every_implementation(name: str, implementation: str, exact: bool) -> None:
    model = ARCHITECTURES[name][0]().eval()
    model.config._experts_implementation = implementation
    decoded = copy.deepcopy(model)
    phiquant.quantize_(model, PhiConfig(exact=exact))
    for key, parameter in model.named_parameters():
        if isinstance(parameter, PhiTensor):
            decoded.get_parameter(key).data.copy_(parameter.dequantize())
    ours, theirs = outputs(model, words()), outputs(decoded, words())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    embedded = [model.get_input_embeddings()(words()["input_ids"]).detach() for _ in range(2)]
    for network, given in zip((model, decoded), embedded, strict=True):
        network(inputs_embeds=given.requires_grad_()).logits.square().sum().backward()
    torch.testing.assert_close(embedded[0].grad, embedded[1].grad, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_experts_in_one_graph(implementation: str, dtype: torch.dtype) -> None:
    model = support.mixtral().to(dtype)
    model.config._experts_implementation = implementation
    phiquant.quantize_(model)
    torch._dynamo.reset()
    graph = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        ours, theirs = graph(**words()).logits, model(**words()).logits
    assert relative(ours, theirs) < 8 * torch.finfo(dtype).eps


def test_a_mixture_without_the_interface_of_transformers() -> None:
    """LLaMA 4 multiplies all tokens with all experts, in a module of its own."""
    from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

    config = transformers.Llama4TextConfig(
        hidden_size=64, intermediate_size=128, num_local_experts=4
    )
    model = Llama4TextExperts(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    tokens = torch.randn(4 * 5, 64)
    before = model(tokens).detach()
    report = phiquant.quantize_(model)
    assert [c.names for c in report.compressed] == [("gate_up_proj",), ("down_proj",)]
    assert model.gate_up_proj.transposed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert relative(model(tokens), before) < 0.02
