"""Tiny random transformers models on disk, and how to compare two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from phiquant import PhiTensor


def llama(**changes: Any) -> LlamaForCausalLM:
    settings = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 130,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def bert() -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=130,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    return BertForMaskedLM(config).eval()


def t5() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=130,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


def whisper() -> WhisperForConditionalGeneration:
    config = WhisperConfig(
        vocab_size=130,
        num_mel_bins=20,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        d_model=64,
        max_source_positions=20,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).eval()


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=130, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config).eval()


def vit() -> ViTForImageClassification:
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        num_labels=40,
    )
    return ViTForImageClassification(config).eval()


def mixtral(**changes: Any) -> MixtralForCausalLM:
    settings = {
        "vocab_size": 130,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "max_position_embeddings": 64,
    }
    return MixtralForCausalLM(MixtralConfig(**(settings | changes))).eval()


def saved(model: PreTrainedModel, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def load(folder: Path, **how: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **how)


def prompt(rows: int = 2, columns: int = 7) -> dict[str, Tensor]:
    ids = torch.randint(3, 130, (rows, columns), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def compressed_names(model: nn.Module) -> set[str]:
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if isinstance(parameter, PhiTensor)
    }


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """The same parameters: equal planes or values, dtypes, frozen or not, shared alike."""
    ours = dict(one.named_parameters(remove_duplicate=False))
    theirs = dict(other.named_parameters(remove_duplicate=False))
    assert list(ours) == list(theirs)
    assert sharing(ours) == sharing(theirs)
    for name, mine in ours.items():
        its = theirs[name]
        assert isinstance(mine, PhiTensor) == isinstance(its, PhiTensor), name
        assert mine.dtype == its.dtype, name
        assert mine.requires_grad == its.requires_grad, name
        assert torch.equal(mine, its), name
        if isinstance(mine, PhiTensor) and isinstance(its, PhiTensor):
            assert mine.stored_dtype == its.stored_dtype, name
            assert mine.describe() == its.describe() in ours, name


def sharing(parameters: dict[str, nn.Parameter]) -> list[str]:
    """For every name the first name of the same parameter."""
    first: dict[int, str] = {}
    return [first.setdefault(id(parameter), name) for name, parameter in parameters.items()]
