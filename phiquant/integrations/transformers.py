"""Compress while loading with transformers: ``from_pretrained(quantization_config=...)``.

Importing this module registers the method "phiquant" with transformers; ``import phiquant`` does
that as soon as transformers is there.
"""

from __future__ import annotations

from typing import Any

from transformers.quantizers import auto
from transformers.quantizers.auto import register_quantization_config, register_quantizer

from phiquant import quantize
from phiquant.integrations.hf_card import model_card, write_model_card
from phiquant.integrations.hf_config import METHOD, PhiQuantConfig
from phiquant.integrations.hf_quantizer import PhiHfQuantizer, attach

__all__ = ["PhiHfQuantizer", "PhiQuantConfig", "model_card", "write_model_card"]

register_quantization_config(METHOD)(PhiQuantConfig)
register_quantizer(METHOD)(PhiHfQuantizer)
# Configs that may say, with a checkpoint that has its own, how to load it.
_may: Any = auto
_may.LOADING_ATTRIBUTES_CONFIG_TYPES += (PhiQuantConfig,)
quantize.after_compression.append(attach)
