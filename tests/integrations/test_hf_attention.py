"""Attention that meets shared keys at once: what transformers' own gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
from transformers import LlamaConfig, LlavaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from phiquant.integrations import hf_attention
from phiquant.integrations.hf_attention import NAME, grouped, grouped_attention

PLACES = 40
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


def operands(
    sequences: int, heads: int, groups: int, tokens: int, dtype: torch.dtype = torch.float32
) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A layer's attention, and its queries, keys and values as layers and caches lay them out."""
    torch.manual_seed(0)
    query = torch.randn(sequences, tokens, heads, 16, dtype=dtype).transpose(1, 2)
    key, value = torch.randn(2, sequences, groups, PLACES, 16, dtype=dtype)
    return SimpleNamespace(num_key_value_groups=heads // groups), query, key, value


def mask_of(sequences: int, tokens: int) -> Tensor:
    last = torch.arange(PLACES - tokens, PLACES)[:, None] - torch.arange(sequences)[:, None, None]
    return (torch.arange(PLACES) <= last)[:, None]


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("added", [False, True], ids=["bool", "added"])
@pytest.mark.parametrize("tokens", [1, 3, 16, 17])
@pytest.mark.parametrize("heads", [(6, 2), (4, 1), (4, 4)], ids=["3 a group", "all", "each"])
@pytest.mark.parametrize("sequences", [1, 3])
def test_what_sdpa_gives(
    sequences: int, heads: tuple[int, int], tokens: int, added: bool, scaling: float | None
) -> None:
    given = operands(sequences, *heads, tokens)
    mask = mask_of(sequences, tokens)
    if added:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    found, nothing = grouped_attention(*given, mask, scaling=scaling)
    wanted, _ = sdpa_attention_forward(*given, mask, scaling=scaling)
    assert nothing is None
    assert found.shape == (sequences, tokens, heads[0], 16)
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@DEVICES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_of_halves_are_fp32(dtype: torch.dtype, device: str) -> None:
    module, *tensors = operands(1, 6, 2, 2, dtype)
    query, key, value = (each.to(device) for each in tensors)
    query = query * 30  # sharp: scores rounded to halves are off by more than results
    mask = mask_of(1, 2).to(device)
    found, _ = grouped_attention(module, query, key, value, mask)
    wide = [each.double() for each in (query, key, value)]
    wanted, _ = sdpa_attention_forward(module, *wide, mask)
    torch.testing.assert_close(found.double(), wanted, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("case", ["no mask", "dropout", "bias", "mask of each head", "many tokens"])
def test_what_it_does_not_know_is_transformers_own(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = hf_attention._FEW + 1 if case == "many tokens" else 3
    module, query, key, value = operands(1, 6, 2, tokens)
    mask: Tensor | None = mask_of(1, tokens)
    others: dict[str, Any] = {}
    if case == "no mask":
        mask = None
    elif case == "dropout":
        others["dropout"] = 0.5
    elif case == "bias":
        others["position_bias"] = torch.randn(1, 6, 3, PLACES)
    elif case == "mask of each head":
        mask = torch.ones(1, 6, 3, PLACES, dtype=torch.bool)
    asked: list[dict[str, Any]] = []

    def own(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        asked.append({"mask": args[4], "dropout": args[5], **kwargs})
        return query, None

    monkeypatch.setattr(hf_attention, "sdpa_attention_forward", own)
    grouped_attention(module, query, key, value, mask, **others)
    assert [one["mask"] is mask for one in asked] == [True]
    assert asked[0].items() >= others.items()


class TestGrouped:
    def test_inside_and_no_longer(self) -> None:
        config = LlamaConfig(attn_implementation="sdpa")
        with grouped(config):
            assert config._attn_implementation == NAME
        assert config._attn_implementation == "sdpa"

    def test_after_an_error(self) -> None:
        config = LlamaConfig(attn_implementation="sdpa")
        with pytest.raises(KeyError), grouped(config):
            raise KeyError
        assert config._attn_implementation == "sdpa"

    def test_other_attention_is_left_alone(self) -> None:
        config = LlamaConfig(attn_implementation="eager")
        with grouped(config):
            assert config._attn_implementation == "eager"

    def test_of_a_model_with_images_only_the_text_s(self) -> None:
        config = LlavaConfig(attn_implementation="sdpa")
        with grouped(config):
            assert config.text_config._attn_implementation == NAME
            assert config.vision_config._attn_implementation == "sdpa"
        assert config.text_config._attn_implementation == "sdpa"
