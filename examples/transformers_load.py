"""Compress a transformers model while it is loaded, then generate with it.

    python examples/transformers_load.py FOLDER_OR_HUB_NAME

Without an argument a tiny random model is made, so that the example runs anywhere.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from phiquant import PhiQuantConfig


def tiny_model() -> str:
    """A folder with a model that knows nothing, as `save_pretrained` writes it."""
    folder = tempfile.mkdtemp(prefix="phiquant-example-")
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=4096
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def main(source: str | None) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        source or tiny_model(),
        quantization_config=PhiQuantConfig(),
        dtype="auto",
    )
    print(model.hf_quantizer.report.summary)
    print("the embedding:", model.get_input_embeddings().weight)

    if source is None:
        inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3)}
        print("generated:", model.generate(**inputs, max_new_tokens=8, do_sample=False).tolist())
        return
    tokenizer = AutoTokenizer.from_pretrained(source)
    inputs = tokenizer("The golden ratio is", return_tensors="pt")
    print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40, do_sample=False)[0]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
