"""PEFT's LoRA layers on top of a compressed weight."""

from __future__ import annotations

from typing import Any, NamedTuple, Self, cast

import torch
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from phiquant.integrations.peft_merging import compress_like, tell_once
from phiquant.tensor import PhiTensor

_REWRITING = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Unmerged(NamedTuple):
    """What a base layer held before anything was merged into it."""

    weight: PhiTensor
    bias: Tensor | None

    @classmethod
    def of(cls, base: nn.Module, leaf: str) -> Self:
        bias = getattr(base, "bias", None)
        return cls(getattr(base, leaf), bias.detach().clone() if bias is not None else None)

    def put_back(self, base: nn.Module, leaf: str, *, plain: bool = False) -> None:
        """On the device and in the dtype that the module has now; ``plain`` puts it decoded."""
        now = getattr(base, leaf)
        weight: Tensor = self.weight.to(device=now.device, dtype=now.dtype)
        if plain:
            weight = cast(PhiTensor, weight).dequantize().contiguous()
        if weight is not self.weight:  # the same one stays tied to where else it is
            weight = nn.Parameter(weight, requires_grad=False)
        setattr(base, leaf, weight)
        if self.bias is not None:
            base.get_parameter("bias").data.copy_(self.bias)


class OnCompressed(lora.LoraLayer):
    """What a LoRA layer does otherwise because the weight below it is compressed.

    Merging decodes the weight, lets PEFT merge into the plain one, and compresses it again with
    the same settings. The planes from before are kept until the layer is unmerged or unloaded, so
    unmerging gives them back bit for bit, where subtracting would round a lossy weight once more.
    """

    parameter_name = "weight"
    merged_adapters: list[str]
    _unmerged: Unmerged | None = None

    def update_layer(self, adapter_name: str, *args: Any, config: Any, **kwargs: Any) -> None:
        """Add an adapter.

        Raises:
            ValueError: it would rewrite the base weight to start from, or needs it in a way that a
                compressed one does not allow; the message says what to use instead.
        """
        base: nn.Module = self.get_base_layer()
        _check(config, getattr(base, self.parameter_name), type(base))
        super().update_layer(adapter_name, *args, config=config, **kwargs)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's ``merge``; on any error the layer is as it was before.

        What is merged already is merged again from the planes before it, so that a lossy weight is
        rounded once, however many steps there are.

        Raises:
            ValueError: the merged weight holds NaN or infinity.
        """
        names = check_adapters_to_merge(self, adapter_names)
        base, leaf = self.get_base_layer(), self.parameter_name
        now, merged, unmerged = Unmerged.of(base, leaf), self.merged_adapters, self._unmerged
        if not names or not isinstance(now.weight, PhiTensor):  # PEFT is at work on the decoded one
            super().merge(safe_merge=safe_merge, adapter_names=names)
            return
        start = unmerged or now
        self._unmerged, self.merged_adapters = None, []
        try:
            start.put_back(base, leaf, plain=True)
            super().merge(safe_merge, [*merged, *names])
            setattr(base, leaf, compress_like(start.weight, getattr(base, leaf).detach()))
        except BaseException:
            now.put_back(base, leaf)
            self._unmerged, self.merged_adapters = unmerged, merged
            raise
        self._unmerged = start

    def unmerge(self) -> None:
        """Put the planes from before merging back, whatever was merged since."""
        if self._unmerged is None:
            super().unmerge()
            return
        base = self.get_base_layer()
        self._unmerged.put_back(base, self.parameter_name)
        self._unmerged, self.merged_adapters = None, []


def _check(config: Any, weight: Tensor, kind: type[nn.Module]) -> None:
    name = weight.describe() if isinstance(weight, PhiTensor) else kind.__name__
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(_REWRITING):
        raise ValueError(
            f"{name}: init_lora_weights={start!r} rewrites the base weight, which is compressed; "
            "use init_lora_weights=True, 'gaussian', 'orthogonal' or 'eva'"
        )
    if config.use_dora and issubclass(kind, nn.Embedding):
        raise ValueError(
            f"{name}: use_dora=True works on a plain embedding only, and this one is compressed; "
            "take it out of target_modules, or use plain LoRA (use_dora=False)"
        )
    if config.use_dora:
        tell_once("dora", f"{name}: DoRA decodes the whole weight on every call, which is slow")


class PhiLinear(OnCompressed, lora.Linear):
    """LoRA on a compressed ``nn.Linear`` or transformers' ``Conv1D``."""


class PhiEmbedding(OnCompressed, lora.Embedding):
    """LoRA on a compressed ``nn.Embedding``."""


class PhiConv1d(OnCompressed, lora.Conv1d):
    """LoRA on a compressed ``nn.Conv1d``."""


class PhiConv2d(OnCompressed, lora.Conv2d):
    """LoRA on a compressed ``nn.Conv2d``."""


class PhiConv3d(OnCompressed, lora.Conv3d):
    """LoRA on a compressed ``nn.Conv3d``."""


class PhiParameter(OnCompressed, lora.ParamWrapper):
    """LoRA on a compressed parameter by its name (``target_parameters``), as that of experts.

    PEFT adds the change to the weight itself, so the weight is decoded on every call.
    """
