"""The kinds of layers whose weights are compressed: which parameters, and how they are stored."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from phiquant.storage import ROWS_AND_COLUMNS, Storage

_RECOMPUTED = ("weight_g", "weight_v", "weight_orig")  # of weight_norm, spectral_norm and pruning
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_FUSED = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.EmbeddingBag)
_KEPT_TRANSPOSED = ("Llama4TextExperts",)  # do not say so themselves


def why_not_place(module: nn.Module, leaf: str) -> str:
    """Why a parameter of this name in this module cannot be compressed; empty if it can."""
    kind = type(module).__name__
    if isinstance(module, parametrize.ParametrizationList) or leaf in _RECOMPUTED:
        return "the weight is computed from it (parametrization, weight_norm, pruning); remove that"
    if isinstance(module, _FUSED):
        return f"{kind} runs in a fused kernel that takes plain weights only"
    if not _is_known(module):
        return f"{kind} is not a layer whose weights are compressed"
    if not _is_weight(module, leaf):
        return f"a {leaf} is not a weight matrix"
    if parametrize.is_parametrized(module):
        return "the module is parametrized; remove the parametrization first"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "an embedding with max_norm writes to its weight"
    return ""


def storage_of(module: nn.Module, leaf: str) -> Storage:
    """How a parameter that can be compressed is stored."""
    if isinstance(module, _ConvNd):
        return Storage(column_dims=1 + len(module.kernel_size))
    if _is_conv1d(module):
        return Storage(transposed=True)
    if _is_experts(module):
        kept = type(module).__name__ in _KEPT_TRANSPOSED
        return Storage(transposed=bool(getattr(module, "is_transposed", kept)))
    return ROWS_AND_COLUMNS


def _is_known(module: nn.Module) -> bool:
    kinds = nn.Linear | nn.Embedding | _ConvNd | nn.MultiheadAttention
    return isinstance(module, kinds) or _is_conv1d(module) or _is_experts(module)


def _is_weight(module: nn.Module, leaf: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return leaf in _ATTENTION
    if isinstance(module, nn.Linear | nn.Embedding | _ConvNd) or _is_conv1d(module):
        return leaf == "weight"
    return _is_expert_weight(module._parameters.get(leaf))


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer in transformers, whose weight is kept ``[in, out]``."""
    return hasattr(module, "nf") and any(
        kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )


def _is_experts(module: nn.Module) -> bool:
    """The experts of a mixture in transformers 5: their weights are parameters of 3 dimensions."""
    named = any("Experts" in kind.__name__ for kind in type(module).__mro__)
    declared = hasattr(module, "is_transposed") and hasattr(module, "has_gate")
    return (named or declared) and any(map(_is_expert_weight, module._parameters.values()))


def _is_expert_weight(parameter: Tensor | None) -> bool:
    return parameter is not None and not is_lazy(parameter) and parameter.dim() == 3
