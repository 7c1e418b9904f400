"""PhiHfQuantizer: what transformers calls while it loads, saves and dequantizes a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer

from phiquant.config import PhiConfig
from phiquant.dequantize import dequantize_
from phiquant.integrations.hf_config import METHOD, PhiQuantConfig
from phiquant.memory import FreedMemory
from phiquant.report import Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phiquant.integrations.hf_disk import DiskWeights
    from phiquant.integrations.hf_loading import CompressOp, Loading
    from phiquant.integrations.hf_reading import HeaderConverter, Reading


class PhiHfQuantizer(HfQuantizer):
    """Compresses a transformers model while it is loaded, saves it, and loads it again.

    ``model.hf_quantizer.report`` is what :func:`phiquant.quantize_` returns.
    """

    quantization_config: PhiQuantConfig
    report: Report | None = None
    _loading: Loading | None = None
    _reading: Reading | None = None
    _disk: DiskWeights | None = None
    _map_is_automatic = False

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Also the only place where transformers shows the map that it made of "auto".

        Raises:
            ValueError: weights are to be offloaded to disk, and the config has no offload_folder.
        """
        if self._map_is_automatic and isinstance(device_map, dict):
            device_map.update(self.disk.take_from(device_map))

    def update_device_map(self, device_map: Any) -> Any:
        """What is to be on "disk" is mapped from there on the CPU."""
        self._map_is_automatic = isinstance(device_map, str)
        return self.disk.take_from(device_map) if isinstance(device_map, dict) else device_map

    @property
    def disk(self) -> DiskWeights:
        from phiquant.integrations.hf_disk import DiskWeights

        if self._disk is None:
            folder = self.quantization_config.offload_folder
            self._disk = DiskWeights(folder, are_mapped=self.pre_quantized)
        return self._disk

    def preprocess_model(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> None:
        from phiquant.integrations.hf_loading import Loading
        from phiquant.integrations.hf_reading import Reading

        config = self.quantization_config
        if self.pre_quantized:
            self._reading = Reading(model, _safe(kwargs.get("checkpoint_files")), config.load, self)
        elif config.load is not None:
            raise ValueError(
                f"load={config.load!r} reads a compressed checkpoint less deep, and this one is "
                "not compressed; leave it out (deviation_bits=0 compresses to the index alone)"
            )
        else:
            self._loading = Loading(model, config, dtype or model.dtype, self.disk)
            self._loading.freed = FreedMemory(kwargs.get("checkpoint_files") or ())
        super().preprocess_model(model, dtype=dtype, **kwargs)

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        """Whether the weight of this name is still to be compressed."""
        return self._loading is not None and param_name in self._loading.waiting

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes of one weight, from which transformers plans where to put what."""
        if self._reading is not None:
            return self._reading.element_size(param_name, param)
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
            self.quantization_config.measured = measured(self.report)
        reading, self._reading = self._reading, None
        if reading is not None:
            self.report = reading.finish(model)
            self.quantization_config.read_at(reading.checkpoint.tier)
        return model

    def get_weight_conversions(self) -> list[HeaderConverter]:
        """How transformers comes by the parameters of a compressed checkpoint."""
        return [] if self._reading is None else self._reading.converters()

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What save_pretrained writes: planes in the place of compressed weights."""
        from phiquant.integrations.hf_saving import state_dict_and_metadata

        return state_dict_and_metadata(model)

    def dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """Put plain weights back, in place; tied weights stay tied.

        Args:
            model: the model that this quantizer loaded.
            dtype: of the whole model; by default every weight keeps its own.
        """
        return self._dequantize(model, dtype)

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        dequantize_(model, dtype=dtype)
        if dtype is not None:
            cast(nn.Module, model).to(dtype)
            model.config.dtype = dtype
        return model

    def forget(self, model: PreTrainedModel) -> None:
        """Make a model that holds plain weights again say so."""
        self.remove_quantization_config(model)
        for module in model.modules():
            config: Any = getattr(module, "config", None)
            if getattr(config, "_is_quantized", False):
                del config._is_quantized

    @property
    def is_trainable(self) -> bool:
        """Adapters (LoRA) can be trained on top; the compressed weights cannot."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True


def attach(model: nn.Module, config: PhiConfig, report: Report) -> None:
    """Make transformers know of a model that was compressed in place, so that it can save it."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or getattr(model, "hf_quantizer", None) is not None:
        return
    settings = PhiQuantConfig(**asdict(config), measured=measured(report))
    quantizer: Any = PhiHfQuantizer(settings, pre_quantized=False)
    quantizer.report = report
    known: Any = model
    known.hf_quantizer, known.is_quantized, known.quantization_method = quantizer, True, METHOD
    quantizer.postprocess_model(model)


def measured(report: Report) -> dict[str, float]:
    """Bits a weight, and the relative error where every weight's is known."""
    found = {"bits_per_weight": round(report.bits_per_weight, 4)}
    if report.relative_error is not None:
        found["relative_error"] = float(f"{report.relative_error:.3g}")
    return found


def _safe(files: Sequence[str] | None) -> Sequence[str]:
    """The files of a checkpoint, none of which may be a pickle."""
    if not files or not all(str(file).endswith(".safetensors") for file in files):
        raise ValueError(f"a compressed checkpoint is read from .safetensors files, got {files}")
    return files
