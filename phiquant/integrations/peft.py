"""LoRA adapters on compressed weights.

PEFT knows torchao's weights: it puts a layer for ``nn.Linear`` on each, whatever module it is in,
and merging needs a quantizer's config. Importing this module makes PEFT use layers of phiquant's
own where a weight is a PhiTensor; ``import phiquant`` does that as soon as PEFT is there.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from peft.tuners.lora import model as lora_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import integrations, other, save_and_load
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from phiquant.integrations.peft_layers import (
    OnCompressed,
    PhiConv1d,
    PhiConv2d,
    PhiConv3d,
    PhiEmbedding,
    PhiLinear,
    PhiParameter,
)
from phiquant.tensor import PhiTensor

_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PhiLinear,
    Conv1D: PhiLinear,
    nn.Embedding: PhiEmbedding,
    nn.Conv1d: PhiConv1d,
    nn.Conv2d: PhiConv2d,
    nn.Conv3d: PhiConv3d,
}
_dispatch_torchao = lora_model.dispatch_torchao
_prepare = other.prepare_model_for_kbit_training
_dequantize = integrations.dequantize_module_weight
_has_base_to_save = save_and_load.has_valid_embedding_base_layer


def dispatch(target: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> nn.Module | None:
    """A LoRA layer for a module with a compressed weight; None leaves it to PEFT.

    Raises:
        ValueError: no LoRA layer fits what is compressed; the message says what to do.
    """
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if not _is_compressed(base, kwargs.get("parameter_name")):
        return _dispatch_torchao(target, adapter_name, config=config, **kwargs)
    layer = _layer_for(base, kwargs)
    config.fan_in_fan_out = isinstance(base, Conv1D)  # how the weight lies, not a choice
    if layer is PhiLinear:
        kwargs["is_target_conv_1d_layer"] = config.fan_in_fan_out
    kwargs.pop("get_apply_tensor_subclass", None)
    return layer(target, adapter_name, config=config, **kwargs)


def _is_compressed(base: nn.Module, leaf: str | None) -> bool:
    """Whether a weight that the adapter would change is compressed."""
    if leaf is not None:
        return isinstance(getattr(base, leaf, None), PhiTensor)
    inside = isinstance(base, nn.MultiheadAttention)  # its output projection is a module of its own
    return any(isinstance(weight, PhiTensor) for weight in base.parameters(recurse=inside))


def _layer_for(base: nn.Module, asked: dict[str, Any]) -> Callable[..., nn.Module]:
    if asked.get("parameter_name"):
        return PhiParameter
    for kind, layer in _LAYERS.items():
        if isinstance(base, kind):
            return layer
    name, known = asked.get("target_name") or "a module", [kind.__name__ for kind in _LAYERS]
    raise ValueError(
        f"target_modules: {name} is a compressed {type(base).__name__}, and LoRA works on "
        f"compressed {', '.join(known)} modules; take it out of target_modules, or do not compress "
        "it (filter_fn of phiquant.quantize_, modules_to_not_convert of PhiQuantConfig)"
    )


@functools.wraps(_prepare)
def prepare_model_for_kbit_training(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Freeze the model and checkpoint its activations, as PEFT does for torchao's weights.

    For a method it does not know PEFT would cast half-precision weights to fp32 instead, and leave
    checkpointing off.
    """
    if not any(isinstance(weight, PhiTensor) for weight in model.parameters()):
        return _prepare(model, *args, **kwargs)
    method = model.__dict__.get("quantization_method")
    model.quantization_method = "torchao"
    try:
        return _prepare(model, *args, **kwargs)
    finally:
        del model.quantization_method
        if method is not None:
            model.quantization_method = method


@functools.wraps(_dequantize)
def dequantize_module_weight(module: nn.Module) -> Tensor:
    """The plain weight, as DoRA needs it."""
    weight = getattr(module, "weight", None)
    return weight.dequantize() if isinstance(weight, PhiTensor) else _dequantize(module)


def has_base_to_save(layer: Any) -> bool:
    """Whether an embedding's base belongs into an adapter's file; a compressed one does not."""
    return not isinstance(layer, OnCompressed) and _has_base_to_save(layer)


def _replace(name: str, function: Callable[..., Any]) -> None:
    """Put a function into every module of PEFT that has it by name."""
    for path, module in list(sys.modules.items()):
        if path.partition(".")[0] == "peft" and hasattr(module, name):
            setattr(module, name, function)


lora_model.dispatch_torchao = dispatch
save_and_load.has_valid_embedding_base_layer = has_base_to_save
_replace("dequantize_module_weight", dequantize_module_weight)
_replace("prepare_model_for_kbit_training", prepare_model_for_kbit_training)
