"""Compress any module in place, use it, look at what it cost."""

import torch
from torch import nn

import phiquant

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(1000, 256), nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 8))
tokens = torch.randint(0, 1000, (4, 16))
before = model(tokens)

print(phiquant.preview(model))  # sizes only, nothing is done yet
report = phiquant.quantize_(model, phiquant.PhiConfig(index_bits=4, deviation_bits=4))
after = model(tokens)

error = ((after - before).norm() / before.norm()).item()
print(f"{report.bits_per_weight:.2f} bits a weight, relative error of the output {error:.1e}")
print(model[1].weight)
assert error < 0.02
assert model[1].weight.at(0).dequantize().shape == (1024, 256)  # the 4-bit model inside

faster = torch.compile(model, fullgraph=True)
assert torch.allclose(faster(tokens), after, atol=1e-4)
