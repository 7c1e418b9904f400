"""What FSDP2 does to a parameter: room for rows, filled once; a flat view; a stride."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

from phiquant.aten.fallback import decode_and_run, refuse_write
from phiquant.aten.joins import concatenated, zeros
from phiquant.tensor import PhiTensor

aten = torch.ops.aten


@PhiTensor.implements(aten.new_zeros.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Zeros with the same columns and no other dtype are compressed; rows can be copied to them."""
    self, shape = args[:2]
    plain = any(value not in (None, False) for value in kwargs.values())
    room = None if plain or torch.compiler.is_compiling() else zeros(self, shape)
    if room is None:
        example = torch.empty((), dtype=self.dtype, device=self.device)
        return func(example, *args[1:], **kwargs)
    room.is_vacant = True
    return room


@PhiTensor.implements(aten.as_strided.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    self, shape, strides = args[:3]
    offset = args[3] if len(args) > 3 else kwargs.get("storage_offset")
    if (tuple(shape), tuple(strides)) != (self.shape, self.stride()) or offset:
        return decode_and_run(func, args, kwargs)
    return return_and_correct_aliasing(func, args, kwargs, self._with())


def fill(rows: PhiTensor, source: PhiTensor) -> bool:
    """Put ``source`` into the room that ``rows`` are the first rows of, if they are of a room.

    The planes of a room are replaced as a whole: payloads of exact weights differ in length.
    """
    room = rows.room
    if room is None or not room.is_vacant:
        return False
    count = rows.scale_plane.shape[0]
    parts = [source, aten.slice.Tensor(room, 0, count)]
    whole = concatenated(parts, 0)
    if whole is None:
        raise ValueError(f"{source.describe()}: its exponent {source.exponent} is not the room's")
    for target, planes in ((room, whole), (rows, aten.slice.Tensor(whole, 0, 0, count))):
        for name in (*target.tensor_data_names, *target.optional_tensor_data_names):
            setattr(target, name, getattr(planes, name))
        target.exponent, target.fit = planes.exponent, source.fit
        target.stored_dtype = source.stored_dtype
    room.is_vacant = False
    return True


class FlatView(torch.Tensor):
    """The values of a compressed weight in one dimension, decoded only when they are used."""

    weight: PhiTensor

    @staticmethod
    def __new__(cls, weight: PhiTensor) -> FlatView:
        view: FlatView = torch.Tensor._make_wrapper_subclass(
            cls, (weight.numel(),), dtype=weight.dtype, device=weight.device
        )
        view.weight = weight
        return view

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is aten.detach.default:
            return cls(args[0].weight)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                refuse_write(value.weight, str(func))
        args, kwargs = tree_map_only(cls, lambda view: view.decoded(), (args, kwargs or {}))
        return func(*args, **kwargs)

    def decoded(self) -> Tensor:
        values: Tensor = decode_and_run(torch.reshape, (self.weight, (-1,)), {})
        return values

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FlatView({self.weight!r})"
