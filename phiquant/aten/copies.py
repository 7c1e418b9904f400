"""Copies and comparisons: to another device or dtype, from a checkpoint, into plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import return_and_correct_aliasing

from phiquant.aten.fallback import refuse_write
from phiquant.aten.rooms import fill
from phiquant.codec import DTYPES
from phiquant.tensor import PhiTensor

aten = torch.ops.aten
_FREE = ("exponent", "fit", "stored_dtype", "dtype")  # may differ between copies of one layout


@PhiTensor.implements(aten._to_copy.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Another device moves the planes; another dtype changes only what they decode to."""
    self = args[0]
    dtype = kwargs.get("dtype") or self.dtype
    if dtype not in DTYPES:
        raise TypeError(
            f"{self.describe()}: a compressed weight decodes to bfloat16, float16 or float32, "
            f"got {dtype}; use .dequantize().to({dtype}) for a plain weight"
        )
    device, non_blocking = kwargs.get("device"), kwargs.get("non_blocking", False)
    moved = self._apply_fn_to_data(
        lambda plane: plane.to(device or plane.device, non_blocking=non_blocking, copy=True)
    )
    return return_and_correct_aliasing(func, args, kwargs, _owning(moved._with(dtype=dtype)))


@PhiTensor.implements(aten.to.dtype_layout)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """In inference mode alone: elsewhere torch itself makes a copy of it, or nothing."""
    self = args[0]
    dtype, device = kwargs.get("dtype") or self.dtype, kwargs.get("device") or self.device
    there = torch.empty(0, device=device).device  # "cuda" says no number
    if not kwargs.get("copy") and (dtype, there) == (self.dtype, self.device):
        return self
    others = {name: value for name, value in kwargs.items() if name != "copy"}
    made: Tensor = aten._to_copy.default(self, **others)
    return made


def _owning(fresh: PhiTensor) -> PhiTensor:
    """A tensor whose planes were made for it."""
    fresh.is_alias = False
    return fresh


@PhiTensor.implements([aten.detach.default, aten.alias.default])
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """What ``.data`` and state dicts hand out: the same planes under another tensor."""
    alias = args[0]._apply_fn_to_data(func)
    alias.is_alias = True
    return return_and_correct_aliasing(func, args, kwargs, alias)


@PhiTensor.implements(aten.copy_.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Planes are copied to planes of the same layout; a plain tensor takes decoded values."""
    self, source = args[:2]
    if not isinstance(self, PhiTensor):
        return self.copy_(source.dequantize())
    difference = _difference(self, source)
    if difference:
        raise ValueError(
            f"{self.describe()}: cannot be overwritten, because the source {difference}; load a "
            "plain checkpoint before compressing the model, and a compressed one into a model "
            "that was compressed with the same configuration"
        )
    if not fill(self, source):
        _copy_planes(self, source)
    return self


def _copy_planes(self: PhiTensor, source: PhiTensor) -> None:
    """In place, if all planes fit; else all are new, so that no alias mixes old ones with new."""
    names = (*self.tensor_data_names, *self.optional_tensor_data_names)
    pairs = {name: (getattr(self, name), getattr(source, name)) for name in names}
    if self.exponent == source.exponent and all(_fits(*pair) for pair in pairs.values()):
        for mine, theirs in pairs.values():
            if mine is not None:
                mine.copy_(theirs)
    else:
        _check_owns(self)
        device = self.index_plane.device
        for name, (_, theirs) in pairs.items():
            setattr(self, name, None if theirs is None else theirs.to(device, copy=True))
    self.exponent, self.fit = source.exponent, source.fit
    self.stored_dtype = source.stored_dtype


def _check_owns(self: PhiTensor) -> None:
    """A tensor that shares its planes would be changed alone, and the weight it is of would not."""
    if self.is_alias and not isinstance(self, nn.Parameter):
        raise RuntimeError(
            f"{self.describe()}: cannot be overwritten through .data, detach(), a state dict's "
            "entry or a slice, because the planes of the source have another size or exponent; "
            "copy the whole weight into the parameter itself: "
            "with torch.no_grad(): module.weight.copy_(source)"
        )


def _fits(mine: Tensor | None, theirs: Tensor | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return mine.shape == theirs.shape


def _difference(self: PhiTensor, other: object) -> str:
    """What keeps planes of ``other`` from standing where those of ``self`` stand; empty if none."""
    if not isinstance(other, PhiTensor):
        return f"is a plain {getattr(other, 'dtype', type(other).__name__)} tensor"
    if self.shape != other.shape:
        return f"has shape {tuple(other.shape)} instead of {tuple(self.shape)}"
    for name in self.tensor_attribute_names:
        mine, theirs = getattr(self, name), getattr(other, name)
        if name not in _FREE and mine != theirs:
            return f"has {name} {theirs!r} instead of {mine!r}"
    if self.is_exact != other.is_exact:
        return "has a remainder, and this has none" if other.is_exact else "has no remainder"
    return ""


@PhiTensor.implements(aten.equal.default)
def _(func: Callable[..., bool], types: Any, args: Any, kwargs: Any) -> bool:
    """Equal planes of an equal layout; against a plain tensor, equal decoded values."""
    self, other = args
    if not (isinstance(self, PhiTensor) and isinstance(other, PhiTensor)):
        plain = [t.dequantize() if isinstance(t, PhiTensor) else t for t in args]
        return torch.equal(plain[0], plain[1])
    if _difference(self, other) or self.exponent != other.exponent:
        return False
    if self.is_exact and self.stored_dtype != other.stored_dtype:
        return False
    same = [_same(mine, theirs) for mine, theirs in zip(self.planes, other.planes, strict=True)]
    if not self.is_exact or all(same):
        return all(same)
    # Blocks may lie elsewhere in the payload of a slice: then their bits are compared.
    return all(same[:4]) and same[-1] and torch.equal(_bits(self), _bits(other))


def _same(mine: Tensor | None, theirs: Tensor | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return torch.equal(mine, theirs)


def _bits(tensor: PhiTensor) -> Tensor:
    return tensor.dequantize(tensor.stored_dtype).contiguous().view(torch.uint8)


@PhiTensor.implements(aten.empty_like.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Room for planes: what ``module.to_empty`` needs before a checkpoint is loaded."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype") or args[0].dtype
    if dtype not in DTYPES:
        return torch.empty(args[0].shape, dtype=dtype, device=device or args[0].device)
    room = args[0]._apply_fn_to_data(lambda plane: torch.empty_like(plane, device=device))
    return _owning(room._with(dtype=dtype))


@PhiTensor.implements(
    [
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.full_like.default,
        aten.rand_like.default,
        aten.randn_like.default,
        aten.new_empty.default,
        aten.new_ones.default,
        aten.new_full.default,
    ]
)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Plain tensors that take only shape, dtype and device from a compressed one."""
    self = args[0]
    example = torch.empty((), dtype=self.dtype, device=self.device).expand(self.shape)
    return func(example, *args[1:], **kwargs)


@PhiTensor.implements_torch_function(Tensor.__setitem__)
def _(func: Callable[..., None], types: Any, args: Any, kwargs: Any) -> None:
    if isinstance(args[0], PhiTensor):
        refuse_write(args[0], "an assignment to elements")
    with torch._C.DisableTorchFunctionSubclass():
        func(*args, **kwargs)


@PhiTensor.implements_torch_function(Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
def _(func: Callable[..., None], types: Any, args: Any, kwargs: Any) -> None:
    args[0].requires_grad_(args[1])


@PhiTensor.implements_torch_function(Tensor.data.__set__)  # type: ignore[attr-defined]
def _(func: Callable[..., None], types: Any, args: Any, kwargs: Any) -> NoReturn:
    raise RuntimeError(
        f"{args[0].describe()}: .data of a compressed weight cannot be assigned; assign a new "
        "parameter to the module (module.weight = nn.Parameter(value, requires_grad=False))"
    )
