"""Train a LoRA adapter on a compressed model, save it, load it again, merge it.

    python examples/lora.py

The model is tiny and random, so that the example runs anywhere; it learns one sentence by heart.
"""

from __future__ import annotations

import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import phiquant

SENTENCE = torch.tensor([list(b"The golden ratio is the most irrational number of all.")])


def base() -> PreTrainedModel:
    """Whatever model you have; from_pretrained(quantization_config=PhiQuantConfig()) is as good."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    sizes |= {"vocab_size": 256, "num_attention_heads": 4, "initializer_range": 0.1}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    phiquant.quantize_(model, progress=False)
    return model


@torch.no_grad()
def loss(model: torch.nn.Module) -> float:
    return model(SENTENCE, labels=SENTENCE).loss.item()


def train(model: PeftModel, ids: Tensor, steps: int) -> None:
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=1e-2)
    for _ in range(steps):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    config = LoraConfig(r=8, target_modules="all-linear")
    model = get_peft_model(base(), config)
    model.print_trainable_parameters()
    print(f"loss before training: {loss(model):.3f}")
    train(model, SENTENCE, steps=40)
    trained = loss(model)
    print(f"loss after training:  {trained:.3f}")
    assert trained < 2

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # the adapter alone
        again = PeftModel.from_pretrained(base(), folder)
    assert loss(again) == trained
    with again.disable_adapter():
        print(f"without the adapter:  {loss(again):.3f}")

    merged = again.merge_and_unload()  # compressed as before; a warning tells what that loses
    weight = merged.model.layers[0].mlp.up_proj.weight
    print(f"merged:               {loss(merged):.3f} at {weight.bits_per_weight} bits a weight")
    assert abs(loss(merged) - trained) < 0.1
