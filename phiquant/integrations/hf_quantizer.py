"""PhiHfQuantizer: what transformers calls while it loads, saves and dequantizes a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer

from phiquant.integrations.hf_config import PhiQuantConfig
from phiquant.report import Report
from phiquant.tensor import PhiTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phiquant.integrations.hf_loading import CompressOp, Loading


class PhiHfQuantizer(HfQuantizer):
    """Compresses a transformers model while it is loaded.

    ``model.hf_quantizer.report`` is what :func:`phiquant.quantize_` returns.
    """

    quantization_config: PhiQuantConfig
    report: Report | None = None
    _loading: Loading | None = None

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Raises ValueError if weights are to be offloaded to disk."""
        if isinstance(device_map, dict) and "disk" in device_map.values():
            offloaded = [name for name, device in device_map.items() if device == "disk"]
            raise ValueError(
                f"device_map: compressed weights cannot be offloaded to disk yet, got {offloaded}; "
                "use a larger max_memory or more devices"
            )

    def preprocess_model(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> None:
        from phiquant.integrations.hf_loading import Loading

        if not self.pre_quantized:
            self._loading = Loading(model, self.quantization_config, dtype or model.dtype)
        super().preprocess_model(model, dtype=dtype, **kwargs)

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        """Whether the weight of this name is still to be compressed."""
        return self._loading is not None and param_name in self._loading.waiting

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes of one weight, from which transformers plans where to put what."""
        if self._loading is None:
            return param.element_size()
        return self._loading.element_size(param_name, param)

    def get_quantize_ops(self) -> CompressOp:
        from phiquant.integrations.hf_loading import CompressOp

        if self._loading is None:
            raise RuntimeError("phiquant: no model is being loaded")
        return CompressOp(self._loading)

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        loading, self._loading = self._loading, None
        if loading is not None:
            self.report = loading.finish(model)
        return model

    def dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """Put plain weights back, in place; tied weights stay tied.

        Args:
            model: the model that this quantizer loaded.
            dtype: of the whole model; by default every weight keeps its own.
        """
        self._dequantize(model, dtype)
        self.remove_quantization_config(model)
        for module in model.modules():
            config: Any = getattr(module, "config", None)
            if getattr(config, "_is_quantized", False):
                del config._is_quantized
        return model

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        plain: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                if isinstance(parameter, PhiTensor):
                    if id(parameter) not in plain:
                        plain[id(parameter)] = nn.Parameter(parameter.dequantize(dtype))
                    setattr(module, leaf, plain[id(parameter)])
        if dtype is not None:
            cast(nn.Module, model).to(dtype)
            model.config.dtype = dtype
        return model

    @property
    def is_trainable(self) -> bool:
        """Adapters (LoRA) can be trained on top; the compressed weights cannot."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return False
