"""A model on a GPU that decodes one sequence: its step of one token compiled, its cache static."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks.decoders import read_bytes
from benchmarks.greedy import CHECKED, PROMPT
from phiquant import PhiConfig, dequantize_, quantize_

PLAIN = "torch bf16"
LLAMA_8B_LAYERS = 32
LLAMA_8B: dict[str, Any] = {  # the shape of Llama-3.1-8B
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": LLAMA_8B_LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}
# How a model is compressed, and which of its tiers is read.
DEFAULT, EXACT = PhiConfig(), PhiConfig(exact=True)
TIERS: dict[str, tuple[PhiConfig, str]] = {
    "phiquant index": (DEFAULT, "index"),
    "phiquant index+4": (DEFAULT, "deviation"),
    "phiquant exact": (EXACT, "exact"),
}
# The error that logits may have. Layers of random weights amplify rounding: of the same bf16 model,
# compiled and eager ones are 0.05 apart.
_TOLERANCE = 0.2


def random_llama(**changes: Any) -> LlamaForCausalLM:
    """A model of Llama-3.1-8B's shape on the GPU, in bf16 with random weights."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(LlamaConfig(**{**LLAMA_8B, **changes}))
    finally:
        torch.set_default_dtype(before)
    # Rotary frequencies are computed, and lose what they need if they are made in bf16.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config, device="cuda")
    return model.eval()


def compressed(model: LlamaForCausalLM, config: PhiConfig) -> LlamaForCausalLM:
    copied = copy.deepcopy(model)
    quantize_(copied, config, progress=False)
    return copied


def decoded(model: nn.Module) -> nn.Module:
    """A plain model of the weights that a compressed one stands for."""
    return dequantize_(copy.deepcopy(model))


class Decoder:
    """A model, plain or compressed, with the cache of one sequence.

    Its step of one token is compiled, and torch puts it into a CUDA graph that it launches after it
    has looked at every parameter; or, `captured`, all of the step is put into one graph here, which
    takes the next token from where it left the last one.
    """

    def __init__(self, name: str, model: nn.Module, context: int, captured: bool) -> None:
        self.name, self.model, self.context, self.captured = name, model, context, captured
        self.read_bytes = read_bytes(self.model)
        mode = None if captured else "reduce-overhead"
        self.compiled: Any = torch.compile(self.step, fullgraph=True, mode=mode)
        self.cache: Any = StaticCache(config=self.model.config, max_cache_len=context)
        self.token = torch.zeros(1, 1, dtype=torch.long, device="cuda")
        self.position = torch.zeros_like(self.token)
        self.start()
        self.graph, self.found = self.capture() if captured else (None, torch.empty(0))

    def step(self, tokens: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The logits after the last token, the likeliest token and its position."""
        output = self.model(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        return logits, logits.argmax(-1, keepdim=True), positions[:, -1:] + 1

    @torch.inference_mode()
    def start(self) -> None:
        """Forget the sequence and read the prompt, which is eager."""
        self.cache.reset()
        tokens = torch.tensor([PROMPT], device="cuda")
        positions = torch.arange(len(PROMPT), device="cuda")[None]
        self.keep(self.step(tokens, positions, self.cache))

    def keep(self, found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The logits of a step, whose token is the next one to be read."""
        logits, token, position = found
        self.token.copy_(token)
        self.position.copy_(position)
        return logits

    def run(self, step: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        return self.keep(step(self.token, self.position, self.cache))

    @torch.inference_mode()
    def capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.run(self.compiled)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.run(self.compiled)
        return graph, logits

    @torch.inference_mode()
    def go_on(self) -> Tensor:
        """The logits after the next token, until the next step."""
        if self.graph is not None:
            self.graph.replay()
            return self.found
        torch.compiler.cudagraph_mark_step_begin()
        return self.run(self.compiled)

    @torch.inference_mode()
    def logits(self, eager: bool) -> Tensor:
        """Those after each of the checked tokens, fp32."""
        self.start()
        found = []
        for token in CHECKED:
            self.token.fill_(token)
            logits = self.run(self.step) if eager else self.go_on()
            found.append(logits[0].float())
        return torch.stack(found)

    def check(self, wanted: Tensor) -> float:
        """How far compiled logits are from those of a plain model, relatively.

        Raises:
            AssertionError: too far.
        """
        error = ((self.logits(eager=False) - wanted).norm() / wanted.norm()).item()
        if not error <= _TOLERANCE:
            raise AssertionError(
                f"{self.name}: logits are off by {error:.3f}, allowed is {_TOLERANCE:g}"
            )
        return error

    def warm_up(self) -> None:
        self.start()
        for _ in range(5):  # torch records its graph at the second call
            self.go_on()
        torch.cuda.synchronize()

    def time(self, tokens: int) -> tuple[float, float]:
        """Seconds of one token, and of what the host does for it, at the same time if it can."""
        if len(PROMPT) + 5 + tokens > self.context:
            raise ValueError(f"tokens: {tokens} do not fit into a cache of {self.context}")
        self.warm_up()
        start = time.perf_counter()
        for _ in range(tokens):
            self.go_on()
        host = time.perf_counter() - start
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / tokens, host / tokens

    def close(self) -> None:
        torch.compiler.reset()
        del self.compiled, self.cache, self.model, self.graph, self.found
        torch.cuda.empty_cache()
