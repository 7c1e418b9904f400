"""transformers' attention for few tokens: queries that share keys meet them at once.

With a mask, transformers' `sdpa` copies keys and values for all heads that share them, and a GPU's
kernels for it give each head to one multiprocessor, of which most stay idle while a text grows
token by token. Here the query heads that share keys are rows of one product with these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "phiquant_grouped"
_OTHERS = ("position_bias", "cache", "softcap", "s_aux")  # arguments that change what is computed
_FEW = 16  # tokens: more are what `sdpa` kernels are made for


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers' `sdpa` attention gives, for few tokens in another order of sums.

    Args:
        module: a layer's attention.
        query: ``[sequences, heads, tokens, size]``.
        key, value: ``[sequences, groups of heads, places, size]``.
        attention_mask: ``[sequences or 1, 1, tokens, places]``, true where a token looks, or added
            to scores.
        dropout: of probabilities; with any, and without a mask, transformers' own is called.
        scaling: of scores; None: one by the root of the size.
        others: what transformers passes besides.

    Returns:
        ``[sequences, tokens, heads, size]``, and None, which stands for probabilities.
    """
    shared = query.shape[1] // key.shape[1]
    plain = attention_mask is not None and attention_mask.shape[1] == 1 and not dropout
    known = all(others.get(name) is None for name in _OTHERS)
    if not plain or not known or shared == 1 or query.shape[2] > _FEW:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
    assert attention_mask is not None
    groups = key.shape[1]
    rows = query.unflatten(1, (groups, shared)).flatten(2, 3)
    scores = _scores(rows.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores.view(len(query), groups * shared, -1, key.shape[2])
    if attention_mask.dtype == torch.bool:
        scores = scores.where(attention_mask, -torch.inf)
    else:
        scores = scores + attention_mask
    chances = scores.softmax(-1).to(value.dtype).view(len(query), groups, -1, key.shape[2])
    made = torch.matmul(chances, value).view(*query.shape[:3], -1)
    return made.transpose(1, 2).contiguous(), None


def _scores(rows: Tensor, keys: Tensor) -> Tensor:
    """In fp32, as kernels for `sdpa` keep them."""
    if rows.is_cuda and rows.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(rows, keys, out_dtype=torch.float32)
    return torch.bmm(rows.float(), keys.float())


@contextmanager
def grouped(config: PretrainedConfig) -> Iterator[None]:
    """Layers of this configuration that attend by `sdpa` call :func:`grouped_attention` inside."""
    text = config.get_text_config(decoder=True)
    if text._attn_implementation != "sdpa" or text.sub_configs:
        yield
        return
    text._attn_implementation = NAME
    try:
        yield
    finally:
        text._attn_implementation = "sdpa"


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
