"""Forward passes of a model and its draft over one cache: eager, compiled, or as CUDA graphs."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from phiquant.speculative.layers import CompiledLayers, compiled_alone

if TYPE_CHECKING:
    from phiquant.integrations.hf_cache import SharedCache

Run = Callable[[Tensor, Tensor], Tensor]
_told: set[str] = set()


class Passes:
    """What a model, its draft and their cache do with the next tokens of some sequences.

    Tokens and positions are int64 ``[sequences, tokens]``, logits ``[sequences, tokens, words]``.

    Args:
        model, draft: transformers' causal language models with one layout of keys and values.
        places: how many tokens the cache holds, for each sequence.
        compile: whether passes after the first go through ``torch.compile``.
        captured: whether each of them becomes a CUDA graph.
        widths: how many tokens the model reads at once, ascending: of these the fewest that hold
            what it is asked for. With one of them the same kernels give each token's logits the
            same bits, drafted or not. Empty: as many as it is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        draft: nn.Module,
        places: int,
        compile: bool,
        captured: bool,
        widths: Sequence[int] = (),
    ) -> None:
        from phiquant.integrations.hf_cache import SharedCache

        self.models = {"model": model, "draft": draft}
        self.cache = SharedCache(model.config, places)  # type: ignore[arg-type]
        self.compile, self.captured, self.widths = compile, captured, tuple(widths)
        self.ready: dict[tuple[str, int], Run] = {}
        self.pool: Any = None  # of memory that graphs share

    @torch.inference_mode()
    def start(self, tokens: Tensor, lengths: list[int]) -> Tensor:
        """Read prompts, aligned to the left; the logits ``[sequences, words]`` after each.

        What fills a shorter prompt up is read, too, and written over before anything sees it.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        self.cache.place(positions.expand(tokens.shape), tokens.shape[1])
        last = torch.tensor(lengths, device=tokens.device) - 1
        kept, place = last.unique(return_inverse=True)
        output = self.models["model"](
            input_ids=tokens,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        logits: Tensor = output.logits[torch.arange(len(tokens), device=tokens.device), place]
        return logits

    @torch.inference_mode()
    def draft(self, tokens: Tensor, positions: Tensor, seen: int) -> Tensor:
        """Logits of the draft, whose keys and values are provisional."""
        return self._run("draft", tokens, positions, seen)

    @torch.inference_mode()
    def verify(self, tokens: Tensor, positions: Tensor, seen: int) -> Tensor:
        """Logits of the model, whose keys and values stay.

        Args:
            tokens: to read.
            positions: of the tokens.
            seen: the least of the positions.
        """
        if not self.widths:
            return self._run("model", tokens, positions, seen)
        most = self.widths[-1]
        parts = [
            self._read_wide(part, at, seen + number * most)
            for number, (part, at) in enumerate(
                zip(tokens.split(most, 1), positions.split(most, 1), strict=True)
            )
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def count(self, tokens: int) -> int:
        """How many passes of the model read so many tokens."""
        return -(-tokens // self.widths[-1]) if self.widths else 1

    def _width(self, tokens: int) -> int:
        """Of the pass that reads so many tokens, or the most that one does."""
        return next((width for width in self.widths if width >= tokens), self.widths[-1])

    def _read_wide(self, tokens: Tensor, positions: Tensor, seen: int) -> Tensor:
        """A pass of one of the widths, of whose tokens those at the end may be no text.

        What they leave in the cache is written anew before anything sees it, as a draft's is.
        """
        asked = tokens.shape[1]
        more = torch.arange(1, self._width(asked) - asked + 1, device=tokens.device)
        tokens = torch.cat([tokens, tokens[:, -1:].expand(-1, len(more))], 1)
        positions = torch.cat([positions, positions[:, -1:] + more], 1)
        # Of its own, since the next pass writes to where a graph leaves its logits.
        return self._run("model", tokens, positions, seen)[:, :asked].clone()

    @torch.inference_mode()
    def prepare(self, rows: int, drafted: int) -> None:
        """Compile and capture what a round of so many drafted tokens needs; needs a started cache.

        What it writes lies at the end of the cache.
        """
        device = self.cache.keys.device
        read = self.widths or (1, drafted + 1)
        needed = [("model", read[0])]  # alone, and where a near tie is decided
        if drafted:
            most = self._width(drafted + 1) if self.widths else drafted + 1
            needed += [("draft", 1), *(("model", width) for width in read if width <= most)]
        for name, width in needed:
            if (name, width) in self.ready or not (self.compile or self.captured):
                continue
            tokens = torch.zeros(rows, width, dtype=torch.long, device=device)
            positions = torch.arange(width, device=device) + self.cache.places - width
            self._make(name, tokens, positions.expand(rows, width).contiguous())

    def _run(self, name: str, tokens: Tensor, positions: Tensor, seen: int) -> Tensor:
        run = self.ready.get((name, tokens.shape[1]))
        if run is not None:
            return run(tokens, positions)
        if len(tokens) > 1:
            return step(self.models[name], self.cache, tokens, positions)
        self.cache.place(positions, seen + tokens.shape[1], seen)
        return _logits(self.models[name], self.cache, tokens, positions, None)

    def _make(self, name: str, tokens: Tensor, positions: Tensor) -> None:
        model, cache = self.models[name], self.cache
        chosen: Callable[..., Tensor] = step

        def run(tokens: Tensor, positions: Tensor) -> Tensor:
            return chosen(model, cache, tokens, positions)

        key = name, tokens.shape[1]
        with self._attention(model):
            if self.compile:
                chosen = compiled(tokens, positions, model, cache, by_layers=self.captured)
            self.ready[key] = self._capture(run, tokens, positions) if self.captured else run

    def _attention(self, model: nn.Module) -> AbstractContextManager[None]:
        """What is made inside keeps the attention that it finds there."""
        if not (self.captured or self.compile):
            return nullcontext()
        from phiquant.integrations.hf_attention import grouped

        return grouped(model.config)  # type: ignore[arg-type]

    def _capture(self, run: Run, tokens: Tensor, positions: Tensor) -> Run:
        """The same as a CUDA graph, which reads and writes where it was captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                run(tokens, positions)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with _no_collection(), torch.cuda.graph(graph, pool=self.pool):
            logits = run(tokens, positions)
        self.pool = self.pool or graph.pool()

        def replay(new_tokens: Tensor, new_positions: Tensor) -> Tensor:
            tokens.copy_(new_tokens)
            positions.copy_(new_positions)
            graph.replay()
            return logits

        return replay


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing is collected inside: a capture ends in an error where memory is freed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def step(model: nn.Module, cache: SharedCache, tokens: Tensor, positions: Tensor) -> Tensor:
    """A pass whose shapes do not depend on how much was read before."""
    cache.place(positions)
    return _logits(model, cache, tokens, positions, cache.mask(positions))


def _logits(
    model: nn.Module, cache: SharedCache, tokens: Tensor, positions: Tensor, mask: Tensor | None
) -> Tensor:
    output = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = output.logits
    return logits


def compiled(
    tokens: Tensor, positions: Tensor, model: nn.Module, cache: SharedCache, by_layers: bool
) -> Callable[..., Tensor]:
    """`step`, compiled for these operands; where that fails `step` itself, which is said once.

    Args:
        by_layers: compile a layer, where most are alike, and not the whole model.
    """
    layers = CompiledLayers.of(model, cache) if by_layers else None
    whole = compiled_alone(step) if layers is None else step

    def compiled_step(*operands: Any) -> Tensor:
        with nullcontext() if layers is None else layers.running():
            logits: Tensor = whole(*operands)
            return logits

    try:
        compiled_step(model, cache, tokens, positions)
    except Exception as error:
        tell_once(
            f"phiquant.generate: torch.compile failed, so passes run eagerly ({error}). Remedy: "
            "install a C++ compiler, or give compile=False"
        )
        return step
    return whole if layers is None else compiled_step


def tell_once(message: str) -> None:
    """Warn, but not with the same first words again."""
    key = message[:60]
    if key not in _told:
        _told.add(key)
        warnings.warn(message, UserWarning, stacklevel=2)
