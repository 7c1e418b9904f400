"""A cache of keys and values that a model and its draft write to in turn."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, StaticLayer


class SharedLayer(StaticLayer):
    """Keys and values of one layer: what is read at a position is written there, over the old."""

    def __init__(self, places: int, cache: SharedCache) -> None:
        super().__init__(max_cache_len=places)
        self.of = [cache]  # in a list, so that nothing that walks over attributes goes in circles

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        positions, reach = self.of[0].positions, self.of[0].reach
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            if len(positions) == 1:
                kept.index_copy_(2, positions[0], new)
            else:
                kept.scatter_(2, positions[:, None, :, None].expand_as(new), new)
        if reach == self.max_cache_len:
            return self.keys, self.values
        return self.keys[:, :, :reach], self.values[:, :, :reach]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.of[0].reach, 0

    def get_seq_length(self) -> int:
        return self.of[0].seen


class SharedCache(Cache):
    """Static keys and values of some sequences, written wherever :meth:`place` said last.

    Self-speculation needs one cache: what a draft wrote is provisional, and the pass that verifies
    it writes over all of it. An entry that was rejected is written anew before anything sees it,
    since positions follow each other and no token sees those behind it.
    """

    def __init__(self, config: PretrainedConfig, places: int) -> None:
        text = config.get_text_config(decoder=True)
        self.places, self.reach, self.seen = places, places, 0
        self.positions = torch.empty(0)
        self.is_added = config._attn_implementation == "eager"
        super().__init__(layers=[SharedLayer(places, self) for _ in range(text.num_hidden_layers)])

    @property
    def is_compileable(self) -> bool:
        """Not by transformers: passes are compiled here."""
        return False

    @property
    def keys(self) -> Tensor:
        """Those of the first layer."""
        keys = getattr(self.layers[0], "keys", None)
        if keys is None:
            raise RuntimeError("the cache is made by the pass over a prompt, which comes first")
        return cast(Tensor, keys)

    def place(self, positions: Tensor, reach: int | None = None, seen: int = 0) -> None:
        """Where the next tokens go.

        Args:
            positions: int64 ``[sequences, tokens]``, or ``[1, tokens]`` if all are alike.
            reach: how many places, from the first, attention looks at; all by default.
            seen: how many of them hold earlier tokens, for masks that transformers makes.
        """
        self.positions, self.seen = positions, seen
        self.reach = self.places if reach is None else reach

    def mask(self, positions: Tensor) -> Tensor:
        """What each token may look at, ``[sequences, 1, tokens, reach]``: true, or to be added."""
        places = torch.arange(self.reach, device=positions.device)
        seen = places <= positions[:, None, :, None]
        if not self.is_added:
            return seen
        dtype = self.keys.dtype
        nothing = torch.zeros((), dtype=dtype, device=seen.device)
        return torch.where(seen, nothing, torch.finfo(dtype).min)
