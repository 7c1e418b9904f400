"""Write a LLaMA of transformers as a GGUF file for llama.cpp, in bf16 and without a vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

_BLOCK_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def name_in_file(name: str) -> str:
    """llama.cpp's name of a parameter."""
    module = name.removesuffix(".weight")
    if module in _TOP_NAMES:
        return f"{_TOP_NAMES[module]}.weight"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{_BLOCK_NAMES[inner]}.weight"


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key, the halves of each head's rotary dimensions made neighbours."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).reshape(weight.shape)


def write(model: LlamaForCausalLM, path: Path) -> None:
    """Write the weights as they are in bf16; norms as fp32, as llama.cpp wants them."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    _write_settings(writer, model.config)
    tied = model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        if name == "lm_head.weight" and tied:
            continue
        weight = parameter.detach()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleaved(weight, model.config.head_dim)
        if weight.dim() == 1:
            writer.add_tensor(name_in_file(name), weight.float().numpy())
            continue
        raw = weight.bfloat16().contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name_in_file(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_settings(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(32)  # mostly bf16
    writer.add_tokenizer_model("no_vocab")
