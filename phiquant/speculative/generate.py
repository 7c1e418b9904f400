"""``phiquant.generate``: what a compressed model says, drafted by a shallower tier of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phiquant.speculative.choice import Choice, Greedy, Sampling
from phiquant.speculative.request import Request, check_model
from phiquant.speculative.rounds import decode
from phiquant.speculative.runner import runner_of
from phiquant.speculative.sequences import Sequences, Stop
from phiquant.speculative.statistics import Reading, Statistics


def generate(
    model: nn.Module,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stopping_criteria: Sequence[Stop] = (),
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    streamer: Any = None,
    draft: nn.Module | None = None,
    draft_tokens: int | None = None,
    tie_tolerance: float | None = None,
    compile: bool = False,
    statistics: Statistics | None = None,
) -> Tensor:
    """Go on with texts as ``model`` does, faster where a shallower tier of it can say the same.

    A shallower tier of ``model`` writes some tokens ahead, ``model`` verifies them in one pass, and
    those that hold are kept. One sequence on a CPU may also go on as the text did before where its
    last tokens stood, which takes no draft. Without sampling the tokens are those that
    ``model`` alone decodes, one by one, but where rounding moves a logit further than
    ``tie_tolerance``; with it they have exactly its distribution. Both write to one static cache of
    keys and values. On a GPU every pass is a CUDA graph, and every pass of ``model`` over one
    sequence reads 4 tokens, of exact weights 8, so that rounding is the same with drafts and
    without (``draft_tokens=0``).

    Args:
        model: a compressed causal language model of transformers, with full attention. A view of a
            deeper one does: ``phiquant.view(model, "deviation")``.
        input_ids: int64 ``[sequences, tokens]``, the prompts.
        attention_mask: of the same shape, 0 at padding before or after a prompt. All is text
            without it.
        max_new_tokens: how many tokens may follow; else ``max_length`` counts the prompt, too; else
            what the model's generation config says, or 20.
        eos_token_id: tokens that end a text, which they are a part of; by default those of the
            generation config. An empty list: none.
        pad_token_id: fills up what ended earlier than others; by default the generation config's,
            or the first that ends a text, or 0.
        stopping_criteria: asked after every token, ``criterion(ids [1, tokens], None)``.
        do_sample: draw tokens, with ``temperature``, ``top_k``, ``top_p`` and ``generator``; else
            the likeliest ones follow. Draws repeat themselves only with ``draft_tokens``, since
            the time that rounds take else decides how many are made.
        streamer: of transformers, for one sequence; gets tokens as soon as they are certain.
        draft: by default ``phiquant.draft(model)``, of exact weights on a CPU with
            ``tier="deviation"``. Another one needs keys and values of the same shapes; what it says
            only changes how long it takes.
        draft_tokens: how many tokens to draft each time, 0 for none. By default as many as pay, by
            the acceptance and the times seen so far; none where it does not pay, which is said
            once.
        tie_tolerance: how near the two best logits of a verification may be, as a part of the
            larger one, before a pass of one token decides between them, as passes of several
            tokens round otherwise. By default 3 steps of the dtype, 64 in fp32; 0 never does that,
            which is the default for one sequence on a GPU.
        compile: let ``torch.compile`` make the passes, which takes about a minute at the first
            call of a kind and is kept with the model.
        statistics: a ``phiquant.speculative.Statistics()``, which is filled in.

    Returns:
        int64 ``[sequences, tokens + new tokens]``: the prompts as given, and what follows.

    Raises:
        TypeError: the model is not a causal language model of transformers.
        ValueError: an argument is not possible, or the model's attention is not.
    """
    check_model(model)
    request = Request(
        model, input_ids, attention_mask, max_new_tokens, max_length, eos_token_id, pad_token_id
    )
    request.check(streamer, draft_tokens, temperature, top_k, top_p, tie_tolerance)
    ends, stops = request.ends, stopping_criteria
    sequences = Sequences(input_ids, attention_mask, request.most, ends, stops)
    widths = runner_of(model).widths(model, input_ids, compile, draft_tokens)
    if tie_tolerance is None and len(widths) == 1:
        tie_tolerance = 0.0  # all passes give a token's logits the same bits
    choice: Choice = Greedy(request.tolerance(tie_tolerance))
    if do_sample:
        choice = Sampling(temperature, top_k, top_p, generator)
    filled = Statistics() if statistics is None else statistics
    with torch.inference_mode():
        _decode(model, sequences, choice, filled, streamer, draft, draft_tokens, compile)
    return sequences.result(request.padding)


def _decode(
    model: nn.Module,
    sequences: Sequences,
    choice: Choice,
    statistics: Statistics,
    streamer: Any,
    draft: nn.Module | None,
    draft_tokens: int | None,
    compile: bool,
) -> None:
    ids, runner = sequences.ids, runner_of(model)
    if draft is None:
        draft = model if draft_tokens == 0 else runner.draft(model)
    passes = runner.passes(model, draft, ids, sequences.most, compile, draft_tokens)
    statistics.deep, statistics.shallow = Reading.of(model), Reading.of(draft)
    statistics.prompt_tokens += sum(map(len, sequences.prompts))

    def show(taken: list[list[int]]) -> None:
        if streamer is not None and taken[0]:
            streamer.put(torch.tensor(taken[0]))

    if streamer is not None:
        streamer.put(ids.cpu())
    if not all(sequences.ended):
        pace = runner.pace(ids, compile, draft_tokens, draft, passes.widths)
        decode(passes, sequences, choice, pace, statistics, show)
    if streamer is not None:
        streamer.end()
