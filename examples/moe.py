"""Compress a mixture of experts: its experts are one parameter of three dimensions."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import phiquant

torch.manual_seed(0)
config = MixtralConfig(
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    num_local_experts=8,
    num_experts_per_tok=2,
)
model = MixtralForCausalLM(config).bfloat16().eval()
tokens = torch.randint(0, 1000, (1, 16))
with torch.no_grad():
    before = model(tokens).logits

print(phiquant.quantize_(model))
experts = model.model.layers[0].mlp.experts.gate_up_proj
print("all experts of a layer:", experts)
print("one of them:", experts[3])

# Each way in which transformers multiplies experts reads only those that tokens were sent to.
for implementation in ("eager", "batched_mm", "grouped_mm"):
    model.config._experts_implementation = implementation
    with torch.no_grad():
        after = model(tokens).logits
    error = ((after - before).float().norm() / before.float().norm()).item()
    print(f"{implementation}: relative error of the output {error:.1e}")
    assert error < 0.1
print(model.generate(tokens, max_new_tokens=8, do_sample=False)[0, 16:].tolist())
