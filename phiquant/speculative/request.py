"""What is asked of a generation: checked, and completed by the model's generation config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_ASSISTED = "model.generate(..., assistant_model=phiquant.draft(model))"
_ATTENTION = ("sdpa", "eager")
_DEFAULT_LENGTH = 20  # new tokens, as transformers has it
# How far apart logits of passes of one and of several tokens may be, in steps of their dtype: about
# twice the most that was seen on SmolLM2. In fp32 sums of many terms are all that differs.
_STEPS, _STEPS_FP32 = 3, 64


@dataclass(frozen=True)
class Request:
    """The arguments of :func:`phiquant.generate` that the model's configuration completes."""

    model: Any
    ids: Tensor
    mask: Tensor | None
    max_new_tokens: int | None
    max_length: int | None
    eos_token_id: int | Sequence[int] | None
    pad_token_id: int | None

    @property
    def most(self) -> int:
        """How many tokens may follow."""
        config = self.model.generation_config
        for new, whole in (
            (self.max_new_tokens, self.max_length),
            (config.max_new_tokens, config.max_length),
        ):
            if new is not None:
                return max(new, 0)
            if whole is not None:
                return max(whole - self.ids.shape[1], 0)
        return _DEFAULT_LENGTH

    @property
    def ends(self) -> set[int]:
        given = self.eos_token_id
        given = self.model.generation_config.eos_token_id if given is None else given
        if given is None:
            return set()
        return {given} if isinstance(given, int) else set(given)

    @property
    def padding(self) -> int:
        configured = self.model.generation_config.pad_token_id
        choices = (self.pad_token_id, configured, *sorted(self.ends), 0)
        return next(token for token in choices if token is not None)

    def tolerance(self, given: float | None) -> float:
        """Of near ties."""
        if given is not None:
            return given
        steps = _STEPS_FP32 if self.model.dtype == torch.float32 else _STEPS
        return steps * torch.finfo(self.model.dtype).eps

    def check(
        self,
        streamer: Any,
        draft_tokens: int | None,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        tie_tolerance: float | None,
    ) -> None:
        """Raise ValueError with what is not possible."""
        ids, mask = self.ids, self.mask
        if ids.dim() != 2 or ids.dtype != torch.long or not ids.numel():
            raise ValueError(f"input_ids: expected int64 [sequences, tokens], got {_shape(ids)}")
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"attention_mask: expected {_shape(ids)}, got {_shape(mask)}")
        if streamer is not None and len(ids) > 1:
            raise ValueError(f"streamer: takes one sequence, got {len(ids)}")
        for name, value, least in (
            ("draft_tokens", draft_tokens, 0),
            ("top_k", top_k, 1),
            ("tie_tolerance", tie_tolerance, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name}: expected {least} or more, got {value}")
        if temperature <= 0:
            raise ValueError(f"temperature: expected more than 0, got {temperature}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and 1 at most, got {top_p}")


def check_model(model: nn.Module) -> None:
    """Raise TypeError or ValueError if the loop cannot keep the model's cache."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "generation_config"):
        kind = type(model).__name__
        raise TypeError(f"model: expected a causal language model of transformers, got {kind}")
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        kinds.add("sliding_attention")
    if config.is_encoder_decoder or kinds:
        what = "an encoder" if config.is_encoder_decoder else ", ".join(sorted(kinds))
        raise ValueError(
            f"model: expected a decoder with full attention only, got {what}; {_ASSISTED} takes "
            "every model that transformers can roll back"
        )
    if config._attn_implementation not in _ATTENTION:
        raise ValueError(
            f"model: masks are made for the attention {' and '.join(_ATTENTION)}, got "
            f"{config._attn_implementation!r}; call model.set_attn_implementation('sdpa')"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model: has weights on the meta device, which hold no values")


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
