"""Compress any module in place, use it, read it at three depths."""

import torch
from torch import nn

import phiquant

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(1000, 256), nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 8))
model = model.bfloat16()
tokens = torch.randint(0, 1000, (4, 16))
before = model(tokens)

print(phiquant.preview(model))  # sizes only, nothing is done yet
report = phiquant.quantize_(model, phiquant.PhiConfig(exact=True))
print(f"{report.bits_per_weight:.2f} bits a weight, checked bit for bit: {phiquant.verify(model)}")
assert torch.equal(model(tokens), before)

# The same memory, read less deep: the 8.25-bit and the 4.25-bit model inside.
for tier in ("deviation", "index"):
    shallow = phiquant.view(model, tier)
    error = (shallow(tokens) - before).float().norm() / before.float().norm()
    print(f"{shallow[1].weight.bits_per_weight} bits: relative error of the output {error:.1e}")
    assert error < 0.2
print(model[1].weight[3:5].dequantize().shape, "decodes two rows, not the whole")

faster = torch.compile(phiquant.view(model, "deviation"), fullgraph=True)
assert torch.allclose(faster(tokens), phiquant.view(model, "deviation")(tokens), atol=1e-2)
