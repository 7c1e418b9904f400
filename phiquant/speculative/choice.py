"""Which tokens follow: the likeliest, or drawn from exactly the verifying model's distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Reads token [sequences, 1] of each block at a column each; logits [sequences, words].
Decide = Callable[[list[int]], Tensor]


class Verdict(NamedTuple):
    """The tokens that follow in each sequence, the drafted ones before them accepted; near ties."""

    tokens: list[list[int]]
    ties: int


class Choice(Protocol):
    """How tokens are chosen."""

    def first(self, logits: Tensor) -> Tensor:
        """Tokens int64 ``[sequences, 1]`` after a prompt, by logits ``[sequences, words]``."""

    def drafted(self, logits: Tensor) -> Tensor:
        """The same for a draft, whose logits :meth:`settle` may come back to."""

    def given(self, tokens: Tensor) -> Tensor:
        """Tokens ``[sequences, 1]`` that were proposed without a draft, as they are."""

    def settle(self, block: Tensor, logits: Tensor, decide: Decide) -> Verdict:
        """What follows the first token of each block.

        Args:
            block: ``[sequences, drafted + 1]``, one known token and drafted ones.
            logits: the model's, ``[sequences, drafted + 1, words]``, after each of these.
            decide: a pass of one token, as plain decoding makes it.
        """


class Greedy:
    """The likeliest token.

    A pass of several tokens rounds otherwise than one of a single token, so where the two best
    logits are closer than that may move them, a pass of one token decides, as in plain decoding.

    Args:
        tolerance: how close, as a part of the larger one's magnitude.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def first(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1, keepdim=True)

    def drafted(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1, keepdim=True)

    def given(self, tokens: Tensor) -> Tensor:
        return tokens

    def settle(self, block: Tensor, logits: Tensor, decide: Decide) -> Verdict:
        best, close = logits.argmax(-1), torch.zeros_like(block)
        if self.tolerance and block.shape[1] > 1:
            top = logits.topk(2, -1).values.float()
            near = self.tolerance * top.abs().amax(-1)
            close = (top[..., 0] - top[..., 1] <= near).long()
        given, winners, doubts = torch.stack([block, best, close]).tolist()
        places, ties = _walk(given, winners, doubts), 0
        while any(doubt[place] for doubt, place in zip(doubts, places, strict=True)):
            ties += 1
            decided = decide(places).argmax(-1).tolist()
            for row, place in enumerate(places):
                if doubts[row][place]:
                    winners[row][place], doubts[row][place] = decided[row], 0
            places = _walk(given, winners, doubts)
        return Verdict([row[: p + 1] for row, p in zip(winners, places, strict=True)], ties)


def _walk(given: list[list[int]], winners: list[list[int]], doubts: list[list[int]]) -> list[int]:
    """How far each sequence agrees with its draft, or to the first doubt."""
    places = []
    for block, winner, doubt in zip(given, winners, doubts, strict=True):
        place = 0
        while place + 1 < len(block) and not doubt[place] and winner[place] == block[place + 1]:
            place += 1
        places.append(place)
    return places


class Sampling:
    """Tokens drawn from the model's distribution, by rejecting some of the draft's.

    A drafted token is kept with probability min(1, p / q), p being the model's probability of it
    and q the draft's, 1 of a token that is no draft's; the first that is not is replaced by one
    from what p has above q. What comes out is distributed as p (Leviathan, Kalman and Matias,
    2023).

    Args:
        temperature, top_k, top_p: of both distributions, as transformers applies them.
        generator: of the random numbers, on the logits' device.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generator = generator
        self.drafts: list[Tensor] = []  # probabilities, or tokens that were given

    def first(self, logits: Tensor) -> Tensor:
        return self._draw(self.probabilities(logits))

    def drafted(self, logits: Tensor) -> Tensor:
        self.drafts.append(self.probabilities(logits))
        return self._draw(self.drafts[-1])

    def given(self, tokens: Tensor) -> Tensor:
        self.drafts.append(tokens)
        return tokens

    def settle(self, block: Tensor, logits: Tensor, decide: Decide) -> Verdict:
        wanted = self.probabilities(logits)
        none = torch.zeros_like(wanted[:, 0])
        # What was given had no other chance.
        drafts = [q if q.is_floating_point() else none.scatter(1, q, 1.0) for q in self.drafts]
        had = torch.stack([*drafts, none], 1)
        self.drafts = []
        of_drafted = block[:, 1:, None]
        p, q = (x[:, :-1].gather(-1, of_drafted)[..., 0] for x in (wanted, had))
        chance = torch.rand(p.shape, generator=self.generator, device=p.device)
        counts = (chance * q < p).long().cumprod(1).sum(1)
        rows = torch.arange(len(block), device=block.device)
        rest = (wanted[rows, counts] - had[rows, counts]).clamp_min(0)
        # Nothing is left only where rounding made p and q differ.
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, wanted[rows, counts])
        following = torch.cat([block[:, 1:], block[:, :1]], 1)
        following = following.scatter(1, counts[:, None], self._draw(rest))
        kept = zip(following.tolist(), counts.tolist(), strict=True)
        return Verdict([tokens[: count + 1] for tokens, count in kept], 0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """fp32, of the same shape as ``logits``."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.sort(-1)
            low = ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p
            low[..., -1] = False
            logits = logits.masked_fill(low.scatter(-1, order, low), float("-inf"))
        return logits.softmax(-1)

    def _draw(self, weights: Tensor) -> Tensor:
        """Tokens ``[sequences, 1]``, each with a chance in proportion to its weight; no waiting."""
        times = torch.empty_like(weights).exponential_(generator=self.generator)
        return (weights / times).argmax(-1, keepdim=True)
