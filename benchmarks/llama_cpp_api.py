"""llama.cpp through the C interface of llama-cpp-python: token ids in, logits out."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.unavailable import Unavailable

CONTEXT = 128
FILE_TYPES = {"BF16": 32, "F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q4_0": 2}  # numbers of llama.h
# gcc 12 drops stores to the AMX tile configuration, which only inline assembly reads, and decoding
# crashes (llama.cpp pull request 26954); these flags keep them.
_FLAGS = "-DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'"
BUILD = f'CMAKE_ARGS="{_FLAGS}" pip install --no-binary llama-cpp-python'
_kept: list[Any] = []  # a callback lives as long as the library may call it


def library() -> Any:
    """llama_cpp, told to be quiet. Raises `Unavailable`."""
    try:
        import gguf  # noqa: F401
        import llama_cpp
    except ImportError as missing:
        raise Unavailable(f"llama.cpp: {BUILD} llama-cpp-python gguf") from missing
    if not _kept:
        _kept.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
        llama_cpp.llama_log_set(_kept[0], ctypes.c_void_p(0))
    return llama_cpp


def features() -> str:
    """Version and the instruction sets it was built for. Raises `Unavailable`."""
    api = library()
    return f"llama-cpp-python {api.__version__}, {api.llama_print_system_info().decode()}"


def quantize(source: Path, target: Path, kind: str, threads: int) -> None:
    """Write another file with llama.cpp's own quantizer and its defaults for that kind."""
    api = library()
    settings = api.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = FILE_TYPES[kind], threads
    settings.allow_requantize = True  # bf16 counts as quantized
    names = str(source).encode(), str(target).encode()
    code = api.llama_model_quantize(*names, ctypes.byref(settings))
    if code != 0:
        raise RuntimeError(f"llama.cpp could not write {kind}: code {code}")


class Model:
    """A file and one sequence, with llama.cpp's defaults but for the number of threads."""

    def __init__(self, path: Path, threads: int) -> None:
        self.api = api = library()
        model_settings = api.llama_model_default_params()
        self.model = api.llama_model_load_from_file(str(path).encode(), model_settings)
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = CONTEXT
        settings.n_threads = settings.n_threads_batch = threads
        self.context = self.model and api.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError(f"llama.cpp could not load {path.name}")
        self.size = int(api.llama_model_size(self.model))
        self.vocabulary = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model)))

    def restart(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def step(self, tokens: list[int]) -> np.ndarray:
        """Go on with these tokens; the logits fp32 [vocabulary] after the last."""
        array = (self.api.llama_token * len(tokens))(*tokens)
        batch = self.api.llama_batch_get_one(array, len(tokens))
        code = self.api.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = self.api.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary,)).copy()
