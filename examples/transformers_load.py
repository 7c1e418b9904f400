"""Compress a transformers model while it is loaded, then generate with it.

    python examples/transformers_load.py FOLDER_OR_HUB_NAME

Without an argument a tiny random model is made, so that the example runs anywhere.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from phiquant import PhiQuantConfig


def save_tiny_model(folder: str) -> None:
    """A model that knows nothing, as `save_pretrained` writes it."""
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=4096
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def load(source: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=PhiQuantConfig(), dtype="auto"
    )
    print(model.hf_quantizer.report.summary)
    print("the embedding:", model.get_input_embeddings().weight)
    return model


def continue_text(source: str, text: str) -> str:
    model, tokenizer = load(source), AutoTokenizer.from_pretrained(source)
    inputs = tokenizer(text, return_tensors="pt")
    return tokenizer.decode(model.generate(**inputs, max_new_tokens=40, do_sample=False)[0])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(continue_text(sys.argv[1], "The golden ratio is"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            save_tiny_model(folder)
            model = load(folder)
        ids = torch.tensor([[1, 2, 3]])
        tokens = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
        print("generated:", tokens.tolist())
