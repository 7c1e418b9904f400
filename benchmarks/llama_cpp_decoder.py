"""llama.cpp as a decoder, through the C interface of llama-cpp-python; tokens in, logits out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks import llama_file
from benchmarks.contenders import Unavailable
from benchmarks.decoders import CONTEXT, Decoder

# Its file types by name: the number in llama.h, and the error that the logits may have.
KINDS = {
    "BF16": (32, 0.05),
    "F16": (1, 0.05),
    "Q8_0": (7, 0.1),
    "Q4_K_M": (15, 0.6),
    "Q4_0": (2, 0.6),
}


def library() -> Any:
    """llama_cpp, told to be quiet. Raises `Unavailable`."""
    try:
        import gguf  # noqa: F401
        import llama_cpp
    except ImportError as missing:
        raise Unavailable(
            "llama.cpp: pip install --no-binary llama-cpp-python llama-cpp-python gguf"
        ) from missing
    llama_cpp.llama_log_set(_quiet(llama_cpp), ctypes.c_void_p(0))
    return llama_cpp


_kept: list[Any] = []  # the callback lives as long as the library may call it


def _quiet(llama_cpp: Any) -> Any:
    if not _kept:
        _kept.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    return _kept[0]


def features() -> str:
    """The instruction sets that llama.cpp was built with. Raises `Unavailable`."""
    return library().llama_print_system_info().decode()


def quantize(source: Path, target: Path, kind: str, threads: int) -> None:
    """Write another file with llama.cpp's own quantizer, its defaults for that kind."""
    llama_cpp = library()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = KINDS[kind][0], threads
    settings.allow_requantize = True  # bf16 counts as quantized
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(settings)
    )
    if code != 0:
        raise RuntimeError(f"llama.cpp could not write {kind}: code {code}")


class LlamaCpp:
    """A GGUF file, with llama.cpp's defaults but for the number of threads."""

    def __init__(self, kind: str, path: Path, threads: int) -> None:
        self.api = library()
        self.name, self.tolerance = f"llama.cpp {kind}", KINDS[kind][1]
        self.model = self.api.llama_model_load_from_file(
            str(path).encode(), self.api.llama_model_default_params()
        )
        settings = self.api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = CONTEXT
        settings.n_threads = settings.n_threads_batch = threads
        self.context = self.model and self.api.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError(f"llama.cpp could not load its {kind} file")
        self.read_bytes = float(self.api.llama_model_size(self.model))
        self.vocabulary = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def restart(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def step(self, tokens: list[int]) -> Tensor:
        array = (self.api.llama_token * len(tokens))(*tokens)
        code = self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens)))
        if code != 0:
            raise RuntimeError(f"{self.name}: llama_decode returned {code}")
        logits = self.api.llama_get_logits_ith(self.context, -1)
        return torch.from_numpy(np.ctypeslib.as_array(logits, (self.vocabulary,)).copy())


def llama_cpp_decoders(model: LlamaForCausalLM, folder: Path, threads: int) -> Iterator[Decoder]:
    """The model's weights in each kind; files are written to the folder. Raises `Unavailable`."""
    library()
    plain = folder / "BF16.gguf"
    llama_file.write(model, plain)
    for kind in KINDS:
        path = folder / f"{kind}.gguf"
        if path != plain:
            quantize(plain, path, kind, threads)
        yield LlamaCpp(kind, path, threads)
