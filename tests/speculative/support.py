"""Small random models that draft for themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import phiquant

WORDS = 96


def llama(
    seed: int = 0, words: int = WORDS, exact: bool = True, **changes: Any
) -> LlamaForCausalLM:
    """Compressed and tied; sharp enough that its index tier often, and not always, agrees."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": words,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.bfloat16() * 4)
    phiquant.quantize_(model, phiquant.PhiConfig(exact=exact), progress=False)
    return model


def prompt(length: int = 7, rows: int = 1, seed: int = 1, words: int = WORDS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, words, (rows, length), generator=generator)


def alone(model: LlamaForCausalLM, ids: Tensor, count: int, **options: Any) -> Tensor:
    """What transformers' own greedy loop says."""
    mask = options.pop("attention_mask", torch.ones_like(ids))
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=count, do_sample=False, **options
    )


def plane_addresses(model: nn.Module) -> set[int]:
    """Where every byte that a model holds begins."""
    found = set()
    for tensor in (*model.parameters(), *model.buffers()):
        if isinstance(tensor, phiquant.PhiTensor):
            found |= {plane.data_ptr() for plane in tensor.planes if plane is not None}
        else:
            found.add(tensor.data_ptr())
    return found
