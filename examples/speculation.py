"""A model that drafts for itself: a shallower tier writes ahead, its whole depth verifies.

    python examples/speculation.py [FOLDER_OR_HUB_NAME]

Without a name it makes a tiny random model, so that it runs anywhere.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import phiquant
from phiquant.speculative import Statistics

torch.manual_seed(0)
if len(sys.argv) > 1:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    ids = tokenizer("The golden ratio is", return_tensors="pt")["input_ids"]
else:
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=None,
    )  # fmt: skip
    model, ids = LlamaForCausalLM(config).eval(), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # or a random model is never sure of anything

phiquant.quantize_(model, phiquant.PhiConfig(exact=True))
mask = torch.ones_like(ids)
alone = model.generate(ids, attention_mask=mask, max_new_tokens=64, do_sample=False)

# transformers' own assisted generation: the draft shares every weight.
draft = phiquant.draft(model)
assisted = model.generate(
    ids, attention_mask=mask, max_new_tokens=64, do_sample=False, assistant_model=draft
)
print("assisted, first tokens:", assisted[0, : ids.shape[1] + 8].tolist())

# The same in one loop with one cache: the number of drafts follows from what is accepted.
told = Statistics()
found = phiquant.generate(model, ids, max_new_tokens=64, statistics=told)
print(told)
if model.dtype == torch.float32:
    assert torch.equal(found, alone)
    assert torch.equal(assisted, alone)

# Drawn tokens have exactly the model's distribution, whatever the draft would have drawn.
drawn = phiquant.generate(
    model, ids, max_new_tokens=16, do_sample=True, temperature=0.8, top_p=0.95, draft_tokens=4
)
print("drawn:", drawn[0, ids.shape[1] :].tolist())
