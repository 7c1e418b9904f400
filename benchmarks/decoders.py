"""Models that decode one sequence token by token: transformers', plain and compressed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks import greedy
from benchmarks.llama_cpp_api import CONTEXT
from benchmarks.zoo import smollm2
from phiquant import PhiConfig, PhiTensor, quantize_, view

PLAIN = "transformers bf16"
# How a compressed model is made, by the name of its contender, and the error its logits may have.
INDEX, ALL_INDEX = "phiquant index", "phiquant index, head too"
INT8_ACTIVATION = "phiquant index, int8 act."  # head too
COMPILED = ", compiled"
PHIQUANT: dict[str, tuple[dict[str, Any], float]] = {
    INDEX: ({"deviation_bits": 0}, 0.8),
    "phiquant index+4": ({}, 0.1),
    "phiquant exact": ({"exact": True}, 0.05),
}
LLAMA_1B: dict[str, Any] = {  # the shape of Llama-3.2-1B
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


class Decoder(Protocol):
    """A model that decodes one sequence.

    read_bytes: of the weights that every token reads; of a table of embeddings only if it is the
        output head, too.
    tolerance: the error that its logits may have, in units of the plain model's.
    """

    name: str
    read_bytes: float
    tolerance: float

    def logits(self) -> Tensor:
        """Those of `greedy.logits`, fp32 [steps, vocabulary]."""

    def turn(self, tokens: int, seconds: float) -> list[float]:
        """What `greedy.turn` takes for each token."""

    def close(self) -> None:
        """Free what it holds."""


class Transformers:
    """A transformers model, eager or compiled; compiled ones keep a cache of fixed size."""

    def __init__(
        self, name: str, model: LlamaForCausalLM, tolerance: float, compiled: bool = False
    ) -> None:
        self.name, self.tolerance, self.model = name, tolerance, model
        self.read_bytes = read_bytes(model)
        self.compiled = compiled
        self.run: Callable[..., Any] = (
            torch.compile(model.forward, fullgraph=True, dynamic=False) if compiled else model
        )
        self.restart()

    def restart(self) -> None:
        if self.compiled:
            self.cache: Any = StaticCache(config=self.model.config, max_cache_len=CONTEXT)
        else:
            self.cache = DynamicCache(config=self.model.config)
        self.seen = 0

    @torch.inference_mode()
    def step(self, tokens: list[int]) -> Tensor:
        position = torch.arange(self.seen, self.seen + len(tokens))[None]
        self.seen += len(tokens)
        run = self.run if len(tokens) == 1 else self.model
        output = run(
            input_ids=torch.tensor([tokens]),
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[0, -1].float()

    def logits(self) -> Tensor:
        return torch.stack(greedy.logits(self))

    def turn(self, tokens: int, seconds: float) -> list[float]:
        return greedy.turn(self, tokens, seconds)

    def close(self) -> None:
        if self.compiled:  # every model counts towards how often torch compiles one forward
            torch.compiler.reset()
        del self.model, self.run, self.cache


def read_bytes(model: nn.Module) -> float:
    """Bytes of all Linear weights, compressed or not."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return sum(
        w.numel() * w.bits_per_weight / 8 if isinstance(w, PhiTensor) else w.nbytes for w in weights
    )


def load_smollm2() -> LlamaForCausalLM:
    """SmolLM2-135M in bf16. Raises `MissingPackage`."""
    return smollm2.load().bfloat16()


def random_llama(**changes: Any) -> LlamaForCausalLM:
    """A model of Llama-3.2-1B's shape, in bf16 with random weights; `changes` to its config."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(LlamaConfig(**{**LLAMA_1B, **changes}))
    finally:
        torch.set_default_dtype(before)
    # Rotary frequencies are computed, and lose what they need if they are made in bf16.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


def transformers_decoders(model: LlamaForCausalLM, compiled: bool = False) -> Iterator[Decoder]:
    """The plain model first, then the same weights compressed in each way."""
    yield Transformers(PLAIN, model, 0.0)
    if compiled:
        yield Transformers(PLAIN + COMPILED, model, 0.05, compiled=True)
    for name, (settings, tolerance) in PHIQUANT.items():
        compressed = copy.deepcopy(model)
        quantize_(compressed, PhiConfig(**settings), progress=False)
        variants = {name: compressed}
        if name == INDEX:
            variants[ALL_INDEX] = view(compressed, "index")
            variants[INT8_ACTIVATION] = view(compressed, "index", activation="int8")
        for variant, read in variants.items():
            yield Transformers(variant, read, tolerance)
            if compiled:
                yield Transformers(variant + COMPILED, read, tolerance, compiled=True)
