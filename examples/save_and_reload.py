"""Save a compressed transformers model, and load it again, whole and less deep.

Run it with ``python examples/save_and_reload.py``.
"""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import phiquant
from phiquant import PhiConfig, PhiQuantConfig

torch.manual_seed(0)
tokens = torch.randint(0, 4096, (1, 12))
config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=4096)
model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
phiquant.quantize_(model, PhiConfig(exact=True))

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    phiquant.write_model_card(model, folder)
    files = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    print(f"{sorted(file.name for file in Path(folder).iterdir())}: {files / 1e6:.1f} MB")

    # Planes lie on mapped memory: nothing is read before it is used.
    whole = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(whole.lm_head.weight, model.lm_head.weight)
    print("all planes:  ", whole.hf_quantizer.report.summary)
    print(phiquant.verify(whole))

    draft = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=PhiQuantConfig(load="index")
    )
    print("index planes:", draft.hf_quantizer.report.summary)
    with phiquant.at_precision(whole, "index"), torch.no_grad():
        assert torch.equal(draft(tokens).logits, whole(tokens).logits)

    rows = phiquant.open(folder)["model.embed_tokens.weight"][10:12]
    print("two rows of a mapped file:", rows.dequantize().shape)
