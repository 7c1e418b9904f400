"""llama.cpp as a decoder, on files of a transformers model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks import llama_cpp_api, llama_file
from benchmarks.decoders import Decoder
from benchmarks.llama_cpp_api import FILE_TYPES
from benchmarks.llama_cpp_worker import Worker
from benchmarks.unavailable import Unavailable

# Four bits a weight change logits much, above all those of random weights; unrelated logits are off
# by 1.4. That names, rotations and norms are right is told by the bf16 file.
TOLERANCES = {"BF16": 0.05, "F16": 0.05, "Q8_0": 0.1, "Q4_K_M": 0.8, "Q4_0": 0.8}


class LlamaCpp:
    """A file of one kind. All its matrices are read for a token: heads must be tied."""

    def __init__(self, path: Path, threads: int) -> None:
        self.name, self.tolerance = f"llama.cpp {path.stem}", TOLERANCES[path.stem]
        self.worker = Worker(path, threads)
        self.read_bytes = float(self.worker.size)

    def logits(self) -> Tensor:
        return torch.from_numpy(np.stack(self.worker.ask("logits")))

    def turn(self, tokens: int, seconds: float) -> list[float]:
        return self.worker.ask("turn", tokens, seconds)

    def close(self) -> None:
        self.worker.close()


def llama_cpp_decoders(
    model: LlamaForCausalLM, folder: Path, threads: int, missing: list[str]
) -> Iterator[Decoder]:
    """The model's weights in each kind; files are written to the folder.

    What does not run here is added to `missing`, with the reason.
    """
    try:
        llama_cpp_api.library()
    except Unavailable as reason:
        missing.append(str(reason))
        return
    plain = folder / "BF16.gguf"
    llama_file.write(model, plain)
    for kind in FILE_TYPES:
        path = folder / f"{kind}.gguf"
        if path != plain:
            llama_cpp_api.quantize(plain, path, kind, threads)
        try:
            yield LlamaCpp(path, threads)
        except Unavailable as reason:
            missing.append(str(reason))
