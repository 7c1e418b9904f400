"""The aten table of PhiTensor: what each operation does with planes instead of values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

from phiquant.codec import DTYPES
from phiquant.tensor import PhiTensor, refuse_gradient

aten = torch.ops.aten
_warned: set[tuple[str, str]] = set()


def _linear(x: Tensor, weight: PhiTensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    return torch.ops.phiquant.linear(x, *weight.planes, bias, *weight.op_arguments)


def _embedding(weight: PhiTensor, indices: Tensor) -> Tensor:
    return torch.ops.phiquant.embedding(
        indices, *weight.planes, *weight.op_arguments, weight.dtype
    )


def _is_matrix(tensor: object, *, transposed: bool) -> bool:
    return isinstance(tensor, PhiTensor) and tensor.dim() == 2 and tensor.transposed == transposed


@PhiTensor.implements_torch_function(functional.linear)
@PhiTensor.implements(aten.linear.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, bias = _bind(("input", "weight", "bias"), args, kwargs)
    if not _is_matrix(weight, transposed=False) or isinstance(x, PhiTensor):
        return decode_and_run(func, args, kwargs)
    return _linear(x, weight, bias)


@PhiTensor.implements(aten.mm.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    left, right = args
    if _is_matrix(right, transposed=True) and not isinstance(left, PhiTensor):
        return _linear(left, right)
    if _is_matrix(left, transposed=False) and not isinstance(right, PhiTensor):
        return _linear(right.t(), left).t()
    return decode_and_run(func, args, kwargs)


@PhiTensor.implements(aten.addmm.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    bias, x, weight = args
    plain = not isinstance(x, PhiTensor) and not isinstance(bias, PhiTensor)
    if plain and bias.dim() == 1 and not kwargs and _is_matrix(weight, transposed=True):
        return _linear(x, weight, bias)
    return decode_and_run(func, args, kwargs)


@PhiTensor.implements_torch_function(functional.embedding)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    indices, weight, _, max_norm = _bind(
        ("input", "weight", "padding_idx", "max_norm"), args, kwargs
    )
    if max_norm is not None:
        _refuse_write(weight, "embedding with max_norm")
    if not _is_matrix(weight, transposed=False):
        return decode_and_run(func, args, kwargs)
    return _embedding(weight, indices)


@PhiTensor.implements(aten.embedding.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    weight, indices = args[:2]
    if not _is_matrix(weight, transposed=False):
        return decode_and_run(func, args, kwargs)
    return _embedding(weight, indices)


@PhiTensor.implements([aten.t.default, aten.transpose.int, aten.permute.default])
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    self = args[0]
    order = list(range(self.dim()))
    swapped = [*order[:-2], *order[:-3:-1]]
    if func is aten.permute.default:
        wanted = [d % self.dim() for d in args[1]]
    else:
        a, b = (d % self.dim() for d in args[1:]) if len(args) > 1 else (0, 1)
        wanted = list(order)
        wanted[a], wanted[b] = b, a
    if wanted not in (order, swapped):
        return decode_and_run(func, args, kwargs)
    flipped = self._with(transposed=self.transposed ^ (wanted == swapped != order))
    return return_and_correct_aliasing(func, args, kwargs, flipped)


@PhiTensor.implements([aten.view.default, aten._unsafe_view.default, aten.reshape.default])
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """The leading dimensions may be regrouped; the columns must stay."""
    self, shape = args
    columns = shape[-1] if len(shape) else None
    if self.transposed or columns != self.columns or len(shape) < 2:
        if list(shape) != list(self.shape):
            return decode_and_run(func, args, kwargs)
        return return_and_correct_aliasing(func, args, kwargs, self._with())
    regrouped = self._apply_fn_to_data(lambda plane: plane.view(*shape[:-1], plane.shape[-1]))
    return return_and_correct_aliasing(func, args, kwargs, regrouped)


@PhiTensor.implements(aten.slice.Tensor)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Rows are cut from the planes; columns too, where the cut is at a group's border."""
    self, dim, start, stop, step = (*args, *(0, None, None, 1)[len(args) - 1 :])
    dim, last = dim % self.dim(), self.dim() - 1
    dim = {last: last - 1, last - 1: last}.get(dim, dim) if self.transposed else dim
    extent = self.columns if dim == last else self.scale_plane.shape[dim]
    start, stop, _ = slice(start, stop).indices(extent)
    if dim < last:
        cut = self._apply_fn_to_data(lambda plane: aten.slice.Tensor(plane, dim, start, stop, step))
        return return_and_correct_aliasing(func, args, kwargs, cut)
    aligned = start % self.group_size == 0 and (stop % self.group_size == 0 or stop == extent)
    if step != 1 or not aligned or stop <= start:
        return decode_and_run(func, args, kwargs)
    return return_and_correct_aliasing(func, args, kwargs, _cut_columns(self, start, stop))


def _cut_columns(self: PhiTensor, start: int, stop: int) -> PhiTensor:
    first, last = start // self.group_size, -(-stop // self.group_size)
    layout = self.plane_layout

    def cut(plane: Tensor | None) -> Tensor | None:
        if plane is None:
            return None
        width = plane.shape[-1] // layout.groups
        return plane[..., first * width : last * width]

    planes = {f"{name}_plane": cut(plane) for name, plane in self.planes._asdict().items()}
    return self._with(columns=stop - start, **planes)


@PhiTensor.implements(aten.select.int)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """One row decodes that row only; the result is a plain tensor."""
    self, dim, place = args
    if self.transposed or dim % self.dim() == self.dim() - 1:
        return decode_and_run(func, args, kwargs)
    planes = (None if plane is None else plane.select(dim, place) for plane in self.planes)
    return torch.ops.phiquant.decode(*planes, *self.op_arguments, self.dtype)


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
    return return_and_correct_aliasing(func, args, kwargs, moved._with(dtype=dtype))


@PhiTensor.implements(aten.copy_.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    """Planes are copied to planes of the same layout; a plain tensor takes decoded values."""
    self, source = args[:2]
    if not isinstance(self, PhiTensor):
        return self.copy_(source.dequantize())
    if not isinstance(source, PhiTensor) or not _same_planes(self, source):
        raise ValueError(
            f"{self.describe()}: cannot copy {_described(source)} into {self!r}; "
            "compress it with the same configuration first"
        )
    for mine, theirs in zip(self.planes, source.planes, strict=True):
        if mine is not None:
            mine.copy_(theirs)
    self.exponent, self.fit = source.exponent, source.fit
    return self


def _same_planes(self: PhiTensor, other: PhiTensor) -> bool:
    free = {"exponent", "fit", "dtype"}
    fixed = [name for name in self.tensor_attribute_names if name not in free]
    return self.shape == other.shape and all(
        getattr(self, name) == getattr(other, name) for name in fixed
    )


@PhiTensor.implements(aten.equal.default)
def _(func: Callable[..., bool], types: Any, args: Any, kwargs: Any) -> bool:
    """Equal planes of an equal layout; against a plain tensor, equal decoded values."""
    self, other = args
    if not (isinstance(self, PhiTensor) and isinstance(other, PhiTensor)):
        self, other = (t.dequantize() if isinstance(t, PhiTensor) else t for t in args)
        return torch.equal(self, other)
    return (
        _same_planes(self, other)
        and self.exponent == other.exponent
        and all(
            mine is theirs or torch.equal(mine, theirs)
            for mine, theirs in zip(self.planes, other.planes, strict=True)
        )
    )


@PhiTensor.implements_torch_function(torch.Tensor.requires_grad.__set__)
def _(func: Callable[..., None], types: Any, args: Any, kwargs: Any) -> None:
    if args[1]:
        refuse_gradient(args[0])


def decode_and_run(func: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
    """The fallback: decode every PhiTensor and run the plain operation; said once."""
    for argument, value in zip(_arguments(func), args, strict=False):
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes and isinstance(value, PhiTensor):
            _refuse_write(value, str(func))
    for value in torch.utils._pytree.tree_leaves((args, kwargs)):
        if isinstance(value, PhiTensor):
            _warn_slow(func, value)
    args, kwargs = tree_map_only(PhiTensor, lambda t: t.dequantize(), (tuple(args), kwargs or {}))
    return func(*args, **kwargs)


def _arguments(func: Callable[..., Any]) -> Sequence[Any]:
    schema = getattr(func, "_schema", None)
    return () if schema is None else schema.arguments


def _refuse_write(tensor: PhiTensor, operation: str) -> None:
    raise RuntimeError(
        f"{tensor.describe()}: {operation} writes to a compressed weight in place, which is not "
        "possible; work on .dequantize(), then compress the result again"
    )


def _warn_slow(func: Callable[..., Any], tensor: PhiTensor) -> None:
    key = (str(func), tensor.describe())
    if key in _warned or torch.compiler.is_compiling():
        return
    _warned.add(key)
    warnings.warn(
        f"phiquant: {func} has no compressed form, so {key[1]} is decoded on every call (slow, "
        "and for that moment as large as the original). Leave this layer out with filter_fn, or "
        "dequantize it.",
        UserWarning,
        stacklevel=3,
    )


def _described(value: object) -> str:
    if isinstance(value, Tensor) and not isinstance(value, PhiTensor):
        return f"a plain tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    return repr(value)


def _bind(names: Sequence[str], args: Sequence[Any], kwargs: Any) -> list[Any]:
    """Positional or keyword arguments by name; a missing one is None."""
    return [args[i] if i < len(args) else (kwargs or {}).get(n) for i, n in enumerate(names)]


def _dispatch(cls: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    handler = cls._ATEN_OP_TABLE[cls].get(func)  # type: ignore[attr-defined]
    if handler is None:
        return decode_and_run(func, args, kwargs or {})
    return handler(func, types, args, kwargs or {})


PhiTensor.__torch_dispatch__ = classmethod(_dispatch)  # type: ignore[assignment]
