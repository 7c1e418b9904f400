"""The texts that a generation goes on with: what is known of each, and whether it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Stop = Callable[[Tensor, Any], Any]


class Sequences:
    """Some texts, each of its own length; padding is put aside.

    Args:
        ids: int64 ``[sequences, tokens]``.
        mask: of the same shape, 0 where there is padding before or after a text; or None.
        most: how many tokens may follow each.
        ends: tokens that end a text, themselves a part of it.
        stops: transformers' stopping criteria: ``stop(ids [1, tokens], None)``, asked after every
            token.
    """

    def __init__(
        self, ids: Tensor, mask: Tensor | None, most: int, ends: set[int], stops: Sequence[Stop]
    ) -> None:
        self.ids, self.most, self.ends, self.stops = ids, most, ends, list(stops)
        rows = ids.tolist()
        if mask is not None:
            kept = mask.tolist()
            rows = [
                [token for token, keep in zip(*row, strict=True) if keep]
                for row in zip(rows, kept, strict=True)
            ]
        if not all(rows):
            raise ValueError("input_ids: every sequence needs a token to go on from")
        self.prompts: list[list[int]] = rows
        self.new: list[list[int]] = [[] for _ in rows]
        self.ended = [most <= 0 for _ in rows]

    @property
    def lengths(self) -> list[int]:
        return [len(p) + len(n) for p, n in zip(self.prompts, self.new, strict=True)]

    @property
    def left(self) -> int:
        """How many tokens may follow the text that needs the most."""
        return max(
            (self.most - len(n) for n, e in zip(self.new, self.ended, strict=True) if not e),
            default=0,
        )

    @property
    def last(self) -> list[int]:
        """The last token of each."""
        return [(n or p)[-1] for p, n in zip(self.prompts, self.new, strict=True)]

    def aligned(self) -> Tensor:
        """The prompts, filled up at the right."""
        width = max(map(len, self.prompts))
        rows = [p + p[-1:] * (width - len(p)) for p in self.prompts]
        return torch.tensor(rows, device=self.ids.device)

    def take(self, following: list[list[int]]) -> list[list[int]]:
        """Go on with these tokens up to where a text ends; those that were taken."""
        taken: list[list[int]] = []
        for row, tokens in enumerate(following):
            before = len(self.new[row])
            for token in tokens:
                if not self.ended[row]:
                    self.new[row].append(token)
                    self.ended[row] = self._is_over(row)
            taken.append(self.new[row][before:])
        return taken

    def _is_over(self, row: int) -> bool:
        if len(self.new[row]) >= self.most or self.new[row][-1] in self.ends:
            return True
        if not self.stops:
            return False
        text = torch.tensor([self.prompts[row] + self.new[row]], device=self.ids.device)
        return any(bool(torch.as_tensor(stop(text, None)).all()) for stop in self.stops)

    def result(self, padding: int) -> Tensor:
        """Prompts as they were given, and what follows, filled up with `padding`."""
        width = max(map(len, self.new))
        rows = [n + [padding] * (width - len(n)) for n in self.new]
        following = torch.tensor(rows, dtype=self.ids.dtype, device=self.ids.device)
        return torch.cat([self.ids, following.reshape(len(rows), width)], 1)
