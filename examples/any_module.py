"""Save and load the compressed weights of a module that has nothing to do with transformers.

Run it with ``python examples/any_module.py``.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import phiquant


class Tagger(nn.Module):
    """Words to tags; the last layer shares the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5000, 256)
        self.mix = nn.TransformerEncoderLayer(256, 4, 512, batch_first=True)
        self.tags = nn.Linear(256, 5000, bias=False)
        self.tags.weight = self.words.weight
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, words: Tensor) -> Tensor:
        return self.tags(self.mix(self.words(words))) * self.scale


torch.manual_seed(0)
words = torch.randint(0, 5000, (2, 9))
model = Tagger().eval()
print(phiquant.quantize_(model).summary)

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "tagger.safetensors"
    phiquant.save(model, file)
    print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")
    again = phiquant.load(Tagger, file).eval()  # a class, or a module that is there already
    with torch.inference_mode():
        assert torch.equal(again(words), model(words))
    assert again.tags.weight is again.words.weight
    shallow = phiquant.load(Tagger, file, tier="index").eval()
    print(f"read at {shallow.tags.weight.bits_per_weight} bits a weight")
