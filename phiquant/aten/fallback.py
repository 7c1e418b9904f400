"""What happens to an operation without an entry: it decodes, and says so once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch._ops import OpOverloadPacket
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

from phiquant.aten.calls import prepared_linear
from phiquant.tensor import PhiTensor

_linear = functional.linear
_warned: set[tuple[str, str]] = set()
_by_name: dict[str, Callable[..., Any]] = {}


def implements_by_name(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers what a library's custom op does with a PhiTensor, before that library is there.

    Args:
        name: the op's, ``namespace::op``.
    """

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        _by_name[name] = handler
        return handler

    return register


def decode_and_run(func: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
    """Decode every PhiTensor and run the plain operation.

    Raises:
        RuntimeError: the operation writes to a PhiTensor, which only ``copy_`` can.
    """
    kwargs = kwargs or {}
    for written in _written(func, args, kwargs):
        refuse_write(written, str(func))
    for value in tree_leaves((tuple(args), kwargs)):
        # A single row is small, and reading one is not a mistake to be told about.
        if isinstance(value, PhiTensor) and value.scale_plane.dim() > 1:
            _warn_slow(func, value)
    args, kwargs = tree_map_only(PhiTensor, PhiTensor.dequantize, (tuple(args), kwargs))
    return func(*args, **kwargs)


def refuse_write(tensor: PhiTensor, operation: str) -> NoReturn:
    raise RuntimeError(
        f"{tensor.describe()}: {operation} writes to a compressed weight in place, which is not "
        "possible; work on .dequantize(), then compress the result again"
    )


def _written(func: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Iterator[PhiTensor]:
    """The PhiTensors, also in lists, that ``func`` writes to by its schema."""
    schema = getattr(func, "_schema", None)
    for place, argument in enumerate(() if schema is None else schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, PhiTensor))


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


def _dispatch(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    handler = cls._ATEN_OP_TABLE[cls].get(func) or _by_name.get(func.name())
    if torch.is_inference_mode_enabled() and func.is_view and not args[0].is_inference():
        # A view of an ordinary tensor counts its versions, which one of inference mode cannot.
        with torch.inference_mode(False), torch.no_grad():
            return _handle(handler, func, types, args, kwargs)
    return _handle(handler, func, types, args, kwargs)


def _handle(handler: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    if handler is not None:
        return handler(func, types, args, kwargs or {})
    # Inference mode leaves whole what otherwise comes as its parts, some of which have a handler.
    result = func.decompose(*args, **(kwargs or {}))
    return decode_and_run(func, args, kwargs) if result is NotImplemented else result


def _function(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    if func is _linear and (product := prepared_linear(args, kwargs)) is not None:
        return product
    handler = cls._TORCH_FN_TABLE[cls].get(func)
    if handler is None and isinstance(func, OpOverloadPacket):
        handler = _by_name.get(func._qualified_op_name)
    if handler is None:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))
    return handler(func, types, args, kwargs or {})


PhiTensor.__torch_dispatch__ = classmethod(_dispatch)
PhiTensor.__torch_function__ = classmethod(_function)
