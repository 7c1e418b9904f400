"""Compress while loading with transformers: ``from_pretrained(quantization_config=...)``.

Importing this module registers the method "phiquant" with transformers; ``import phiquant`` does
that as soon as transformers is there.
"""

from __future__ import annotations

from transformers.quantizers.auto import register_quantization_config, register_quantizer

from phiquant.integrations.hf_config import METHOD, PhiQuantConfig
from phiquant.integrations.hf_quantizer import PhiHfQuantizer

__all__ = ["PhiHfQuantizer", "PhiQuantConfig"]

register_quantization_config(METHOD)(PhiQuantConfig)
register_quantizer(METHOD)(PhiHfQuantizer)
