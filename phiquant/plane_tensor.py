"""PlaneTensor: a tensor subclass that is nothing but planes and how to read them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torchao.utils import TorchAOBaseTensor

from phiquant.codec import Planes


class _PlaneTensorType(type(TorchAOBaseTensor)):  # type: ignore[misc]
    """Lets ``type(parameter)(value, requires_grad=False)`` wrap a value, as nn.Parameter does.

    Hooks of other libraries (accelerate's above all) put a moved parameter back in this way.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "requires_grad" not in kwargs:
            return super().__call__(*args, **kwargs)
        value = args[0] if args else None
        if not isinstance(value, PlaneTensor):
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{cls.__name__}: a compressed weight cannot be replaced by a plain {what} tensor "
                "in the place of its planes; load a plain checkpoint before compressing the model"
            )
        return nn.Parameter(value, kwargs["requires_grad"])


class PlaneTensor(TorchAOBaseTensor, metaclass=_PlaneTensorType):
    """What :class:`phiquant.PhiTensor` is made of; it knows no operations.

    The constructor takes planes as :class:`phiquant.codec.Planes` describes them, the attributes of
    :class:`phiquant.codec.Layout`, and the checksum, uint8 ``[16]``, of an exact weight.
    ``column_shape`` unfolds the columns where they are several dimensions, as those of a
    convolution's weight: ``[rows, *column_shape]``; empty if they are one. ``activation`` is "int8"
    or "bf16" where products may round their input to that; it belongs to a reading of the weight
    and is not stored.
    """

    tensor_data_names: ClassVar[list[str]] = ["index_plane", "scale_plane"]
    optional_tensor_data_names: ClassVar[list[str]] = [
        "deviation_plane",
        "deviation_low_plane",
        "remainder_plane",
        "offset_plane",
        "start_plane",
        "exception_plane",
        "checksum_plane",
    ]
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
        "column_shape",
    ]

    optional_tensor_attribute_names: ClassVar[list[str]] = ["activation"]

    fqn: str | None = None
    is_alias: bool = False  # shares planes with a tensor that does not see them replaced
    is_vacant: bool = False  # zeros, to whose first rows others may be copied
    room: Self | None = None  # the vacant tensor that these are the first rows of

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
        column_shape: tuple[int, ...] = (),
        deviation_plane: Tensor | None = None,
        deviation_low_plane: Tensor | None = None,
        remainder_plane: Tensor | None = None,
        offset_plane: Tensor | None = None,
        start_plane: Tensor | None = None,
        exception_plane: Tensor | None = None,
        checksum_plane: Tensor | None = None,
        activation: str | None = None,
    ) -> Self:
        shape = [*scale_plane.shape[:-1], *(column_shape or (columns,))]
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
        column_shape: tuple[int, ...] = (),
        deviation_plane: Tensor | None = None,
        deviation_low_plane: Tensor | None = None,
        remainder_plane: Tensor | None = None,
        offset_plane: Tensor | None = None,
        start_plane: Tensor | None = None,
        exception_plane: Tensor | None = None,
        checksum_plane: Tensor | None = None,
        activation: str | None = None,
    ) -> None:
        self.index_plane, self.scale_plane = index_plane, scale_plane
        self.deviation_plane, self.deviation_low_plane = deviation_plane, deviation_low_plane
        self.remainder_plane, self.exception_plane = remainder_plane, exception_plane
        self.offset_plane, self.start_plane = offset_plane, start_plane
        self.checksum_plane = checksum_plane
        self.columns = columns
        self.index_bits, self.deviation_bits = index_bits, deviation_bits
        self.group_size, self.grid, self.exponent = group_size, grid, exponent
        self.fit, self.stored_dtype, self.transposed = fit, stored_dtype, transposed
        self.column_shape, self.activation = tuple(column_shape), activation

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        """As torchao's, but made once: compiled code asks three times at every call."""
        state = self.__dict__
        if FLATTENED in state:
            names, attributes = state[FLATTENED]
            return names.copy(), attributes.copy()
        planes = (*self.tensor_data_names, *self.optional_tensor_data_names)
        kept = (*self.tensor_attribute_names, *self.optional_tensor_attribute_names)
        attributes = {name: state.get(name) for name in kept}
        with torch._C.DisableTorchFunctionSubclass():
            attributes["dtype"] = self.dtype
        names = [name for name in planes if state[name] is not None]
        state[FLATTENED] = names, attributes
        return names.copy(), attributes.copy()

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop(PREPARED, None)
        self.__dict__.pop(FLATTENED, None)
        super().__setattr__(name, value)

    @property
    def planes(self) -> Planes:
        return Planes(
            self.index_plane,
            self.deviation_plane,
            self.deviation_low_plane,
            self.scale_plane,
            self.remainder_plane,
            self.offset_plane,
            self.start_plane,
            self.exception_plane,
        )

    @property
    def op_arguments(self) -> tuple[int, int, int, int, str, int, torch.dtype | None]:
        """The arguments of ``torch.ops.phiquant`` after the planes, read on every call."""
        return (
            self.columns,
            self.index_bits,
            self.deviation_bits,
            self.group_size,
            self.grid,
            self.exponent,
            None if self.remainder_plane is None else self.stored_dtype,
        )

    @property
    def is_exact(self) -> bool:
        """Whether the remainder is there, so that this decodes to the original."""
        return self.remainder_plane is not None

    @property
    def stored_bytes(self) -> int:
        """Bytes of all planes and the checksum; ``nbytes`` tells those this one stands for."""
        planes = (*self.planes, self.checksum_plane)
        return sum(plane.nbytes for plane in planes if plane is not None)

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight, scale words and padding counted; 0 for an empty slice."""
        return self.stored_bytes * 8 / max(self.numel(), 1)

    def blame(self, error: ValueError) -> ValueError:
        """What an op says of planes, with the name of this tensor before it."""
        return ValueError(f"{self.describe()}: {str(error).removeprefix('weight.')}")

    def on(self, planes: Planes, **changes: Any) -> Self:
        """A tensor like this one on other planes, with some attributes changed."""
        return self._with(**named(planes), **changes)

    def _with(self, **changes: Any) -> Self:
        """An alias on the same planes with some planes or attributes changed."""
        names = (
            *self.tensor_data_names,
            *self.tensor_attribute_names,
            *self.optional_tensor_data_names,
            *self.optional_tensor_attribute_names,
        )
        tensor = type(self)(**{name: getattr(self, name) for name in names} | changes)
        tensor.fqn, tensor.is_alias = self.fqn, True
        return tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies each plane once; tensors that share planes go on sharing them."""
        if id(self) in memo:
            return cast(Self, memo[id(self)])
        copied = self._apply_fn_to_data(lambda plane: copy.deepcopy(plane, memo))
        if isinstance(self, nn.Parameter):
            copied = cast(Self, nn.Parameter(copied, requires_grad=False))
        own = copied.__dict__
        rest = {name: value for name, value in self.__getstate__().items() if name not in own}
        own.update(copy.deepcopy(rest, memo))
        memo[id(self)] = copied
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: a copy is nobody's alias, and prepares its own planes."""
        own = ("is_alias", PREPARED, FLATTENED)
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def _apply_fn_to_data(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """A tensor with ``fn`` applied to every plane."""
        tensor = super()._apply_fn_to_data(fn)
        tensor.fqn = self.fqn
        return tensor

    def describe(self) -> str:
        """How messages call this tensor."""
        return self.fqn or f"compressed weight of shape {tuple(self.shape)}"

    def _stable_hash_for_caching(self) -> str:
        """What torch.compile's caches may tell compiled graphs apart by: all but the values."""
        names = (*self.tensor_attribute_names, *self.optional_tensor_attribute_names)
        attributes = {name: getattr(self, name) for name in names}
        planes = [
            None
            if plane is None
            else (plane.shape, plane.stride(), plane.storage_offset(), plane.dtype, plane.device)
            for plane in (*self.planes, self.checksum_plane)
        ]
        return f"PhiTensor {GRAPHS} {attributes} {planes} {self.requires_grad}"


def named(planes: Planes) -> dict[str, Any]:
    """Planes by the names of PhiTensor's attributes."""
    return {attribute: getattr(planes, plane) for plane, attribute in ATTRIBUTES.items()}


# What phiquant.aten.calls makes of the planes and keeps in __dict__ until one is replaced.
PREPARED = "_prepared"
FLATTENED = "_flattened"  # and of their names and the attributes, in the same way
GRAPHS = 2  # to be raised where the same call becomes another graph, for the caches on disk
ATTRIBUTES = {
    "index": "index_plane",
    "deviation": "deviation_plane",
    "deviation_low": "deviation_low_plane",
    "scale": "scale_plane",
    "remainder": "remainder_plane",
    "offsets": "offset_plane",
    "starts": "start_plane",
    "exceptions": "exception_plane",
}
