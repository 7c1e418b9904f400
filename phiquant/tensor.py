"""PhiTensor: a weight that is held as planes and used as a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, astuple
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torchao.utils import TorchAOBaseTensor

from phiquant import ops as ops  # registers torch.ops.phiquant
from phiquant.checks import check_importance, check_weight
from phiquant.codec import Planes, exponent_for
from phiquant.config import PhiConfig


class PhiTensor(TorchAOBaseTensor):
    """A compressed weight ``[..., rows, columns]``; groups run along ``columns``.

    Make one with :meth:`from_hp`. The constructor takes planes as :class:`phiquant.codec.Planes`
    describes them. ``stored_dtype`` is the dtype that was encoded and never changes; ``dtype`` is
    what the tensor claims and decodes to. ``transposed`` swaps the last two dimensions of the view
    without touching the planes. ``fqn``, if set, is what messages call it.

    >>> weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    >>> PhiTensor.from_hp(weight, PhiConfig())
    PhiTensor(shape=(8, 128), planes=index 4 + deviation 4, bits_per_weight=8.25, \
group_size=64, grid='phi', dtype=torch.float32, device='cpu')
    """

    tensor_data_names: ClassVar[list[str]] = ["index_plane", "scale_plane"]
    optional_tensor_data_names: ClassVar[list[str]] = ["deviation_plane", "deviation_low_plane"]
    tensor_attribute_names: ClassVar[list[str]] = [
        "columns",
        "index_bits",
        "deviation_bits",
        "group_size",
        "grid",
        "exponent",
        "fit",
        "stored_dtype",
        "dtype",
        "transposed",
    ]

    fqn: str | None = None

    def __new__(
        cls,
        index_plane: Tensor,
        scale_plane: Tensor,
        columns: int,
        index_bits: int,
        deviation_bits: int,
        group_size: int,
        grid: str,
        exponent: int,
        fit: str,
        stored_dtype: torch.dtype,
        dtype: torch.dtype,
        transposed: bool = False,
        deviation_plane: Tensor | None = None,
        deviation_low_plane: Tensor | None = None,
    ) -> PhiTensor:
        shape = [*scale_plane.shape[:-1], columns]
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        if transposed:
            shape[-2:], strides[-2:] = shape[:-3:-1], strides[:-3:-1]
        return torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=dtype, device=index_plane.device, requires_grad=False
        )

    def __init__(
        self,
        index_plane: Tensor,
        scale_plane: Tensor,
        columns: int,
        index_bits: int,
        deviation_bits: int,
        group_size: int,
        grid: str,
        exponent: int,
        fit: str,
        stored_dtype: torch.dtype,
        dtype: torch.dtype,
        transposed: bool = False,
        deviation_plane: Tensor | None = None,
        deviation_low_plane: Tensor | None = None,
    ) -> None:
        self.index_plane, self.scale_plane = index_plane, scale_plane
        self.deviation_plane, self.deviation_low_plane = deviation_plane, deviation_low_plane
        self.columns = columns
        self.index_bits, self.deviation_bits = index_bits, deviation_bits
        self.group_size, self.grid, self.exponent = group_size, grid, exponent
        self.fit, self.stored_dtype, self.transposed = fit, stored_dtype, transposed

    @classmethod
    def from_hp(
        cls,
        weight: Tensor,
        config: PhiConfig | None = None,
        *,
        importance: Tensor | None = None,
        name: str = "weight",
    ) -> PhiTensor:
        """Compress a high-precision weight.

        Args:
            weight: bf16, fp16 or fp32 ``[..., rows, columns]``, finite, with at least 2 dimensions.
            config: how; the default is ``PhiConfig()``.
            importance: fp32 ``[columns]``, non-negative weights of the squared error that the
                choice of sign and bend minimises (for example the mean square of the inputs).
            name: what to call the weight in messages.

        Raises:
            TypeError: the weight is no plain tensor of a supported floating-point dtype.
            ValueError: the weight is empty, not dense, has fewer than 2 dimensions, is on the meta
                device or holds NaN or infinity; or the importance has another shape or a value
                that is negative or not finite.
        """
        config = PhiConfig.checked(config)
        if isinstance(weight, PhiTensor):
            raise TypeError(f"{name}: is compressed already; use .dequantize() to start anew")
        exponent = exponent_for(check_weight(weight, name))
        layout = config.layout(weight.shape[-1], exponent)
        check_importance(importance, layout.columns)
        index, deviation, deviation_low, scale = torch.ops.phiquant.encode(
            weight.detach().contiguous(), importance, *astuple(layout)[1:], config.fit
        )
        tensor = cls(
            index_plane=index,
            scale_plane=scale,
            deviation_plane=deviation if layout.high_bits else None,
            deviation_low_plane=deviation_low if layout.low_bits else None,
            **asdict(layout),
            fit=config.fit,
            stored_dtype=weight.dtype,
            dtype=weight.dtype,
        )
        tensor.fqn = name
        return tensor

    @property
    def planes(self) -> Planes:
        return Planes(
            self.index_plane, self.deviation_plane, self.deviation_low_plane, self.scale_plane
        )

    @property
    def op_arguments(self) -> tuple[int, int, int, int, str, int]:
        """The arguments of ``torch.ops.phiquant`` after the planes, read on every call."""
        return (
            self.columns,
            self.index_bits,
            self.deviation_bits,
            self.group_size,
            self.grid,
            self.exponent,
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes of all planes; ``nbytes`` tells those of the tensor this one stands for."""
        return sum(plane.nbytes for plane in self.planes if plane is not None)

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight, scale words and padding counted; 0 for an empty slice."""
        return self.stored_bytes * 8 / max(self.numel(), 1)

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        """The decoded weight as a plain tensor, in ``output_dtype`` or the tensor's own dtype."""
        weight = torch.ops.phiquant.decode(
            *self.planes, *self.op_arguments, output_dtype or self.dtype
        )
        return weight.transpose(-2, -1) if self.transposed else weight

    def at(self, deviation_bits: int) -> PhiTensor:
        """The same weight read less deep: a tensor that shares the planes and needs no memory.

        Args:
            deviation_bits: 0 reads the index plane only; 4 the first plane of an 8-bit deviation.

        Raises:
            ValueError: the planes do not hold a tier of this depth.
        """
        choices = {0, self.deviation_bits} | ({4} if self.deviation_bits == 8 else set())
        if deviation_bits not in choices:
            raise ValueError(
                f"deviation_bits must be one of {sorted(choices)} for a tensor with "
                f"{self.deviation_bits} deviation bits, got {deviation_bits!r}"
            )
        return self._with(
            deviation_bits=deviation_bits,
            deviation_plane=self.deviation_plane if deviation_bits else None,
            deviation_low_plane=self.deviation_low_plane if deviation_bits == 8 else None,
        )

    def _with(self, **changes: Any) -> PhiTensor:
        """A tensor on the same planes with some planes or attributes changed."""
        names = (
            self.tensor_data_names + self.tensor_attribute_names + self.optional_tensor_data_names
        )
        tensor = type(self)(**{name: getattr(self, name) for name in names} | changes)
        tensor.fqn = self.fqn
        return tensor

    def _apply_fn_to_data(self, fn: Callable[[Tensor], Tensor]) -> PhiTensor:
        """A tensor with ``fn`` applied to every plane."""
        tensor = super()._apply_fn_to_data(fn)
        tensor.fqn = self.fqn
        return tensor

    def requires_grad_(self, requires_grad: bool = True) -> PhiTensor:
        """Refuse gradients: a compressed weight cannot be trained."""
        if requires_grad:
            raise RuntimeError(
                f"{self.describe()}: a compressed weight has no gradient and cannot be trained; "
                "train an adapter on top of it, or use .dequantize() for a plain weight. To put it "
                "into a parameter: nn.Parameter(weight, requires_grad=False); into a model by "
                "load_state_dict(assign=True): model.requires_grad_(False) first"
            )
        return self

    def share_memory_(self) -> NoReturn:
        raise RuntimeError(
            f"{self.describe()}: share_memory_() is not supported for a compressed weight; "
            "send the model to the other process, or load it there"
        )

    def describe(self) -> str:
        """How messages call this tensor."""
        return self.fqn or f"compressed weight of shape {tuple(self.shape)}"

    def _stable_hash_for_caching(self) -> str:
        """What torch.compile's caches may tell compiled graphs apart by: all but the values."""
        attributes = {name: getattr(self, name) for name in self.tensor_attribute_names}
        planes = [
            None
            if plane is None
            else (plane.shape, plane.stride(), plane.storage_offset(), plane.dtype, plane.device)
            for plane in self.planes
        ]
        return f"PhiTensor {attributes} {planes} {self.requires_grad}"

    def __repr__(self, *, tensor_contents: object = None) -> str:
        planes = f"index {self.index_bits}" + (
            f" + deviation {self.deviation_bits}" if self.deviation_bits else ""
        )
        return (
            f"PhiTensor(shape={tuple(self.shape)}, planes={planes}, "
            f"bits_per_weight={self.bits_per_weight:.2f}, "
            f"group_size={self.group_size}, grid={self.grid!r}, dtype={self.dtype}, "
            f"device='{self.device}')"
        )


torch.serialization.add_safe_globals([PhiTensor])
