"""Ops on many matrices at once, the experts of a mixture: products by groups, and a selection.

Planes are those of a weight ``[experts, rows, columns]``. Each expert that is asked for is read by
the ops of one matrix; the others are not touched. On a GPU the host does not know which these are,
and asking would wait for the device: few rows take a kernel that finds out, many are multiplied by
torch with all experts decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from phiquant import codec, ops
from phiquant.codec import Planes
from phiquant.ops import BITS, COUNT, PLANES, TAGS

_library = torch.library.Library("phiquant", "FRAGMENT")
for _name in ("grouped_linear", "grouped_linear_backward"):
    _library.define(
        f"{_name}(Tensor x, {PLANES}, Tensor ends, int columns, {BITS}) -> Tensor", tags=TAGS
    )
# Of the compiled library for GPUs alone: `grouped_linear` with lossy planes and few rows.
_library.define(f"_grouped_few(Tensor x, {PLANES}, Tensor ends, int columns, {BITS}) -> Tensor")
_library.define(
    f"gather(Tensor indices, {PLANES}, int columns, {BITS}, ScalarType dtype) -> Tensor", tags=TAGS
)


def _grouped_linear(x: Tensor, *arguments: Any) -> Tensor:
    """``x[start:stop] @ weight[expert].T``, ``[tokens, columns]`` to ``[tokens, rows]``.

    ``ends``, int32 or int64 ``[experts]``, ascend and tell where the tokens of each expert end;
    those after the last expert's have a result of zero.
    """
    planes, ends, layout = _split(arguments)
    _check(x, planes, ends, layout[0])
    result = x.new_zeros((x.shape[0], planes.scale.shape[-2]))
    for one, start, stop in _groups(planes, ends, layout[0], x.shape[0]):
        result[start:stop] = torch.ops.phiquant.linear(x[start:stop], *one, None, *layout)
    return result


# Up to so many rows an expert, had each as many, codes are decoded for every 8 or 16 of them: where
# tensor cores multiply, or where not.
_FEW_ON_TENSOR_CORES, _FEW = 48, 16
_MOST_EXPERTS = 65535


def _grouped_linear_cuda(x: Tensor, *arguments: Any) -> Tensor:
    """The same without waiting for the device, except for exact weights and few rows.

    ``ends`` are taken as they are: numbers that are out of range or do not ascend give rows
    of no meaning, and nothing is read or written outside.
    """
    planes, ends, layout = _split(arguments)
    _check(x, planes, ends, layout[0])
    experts, tokens = planes.scale.shape[0], x.shape[0]
    if not experts:
        return x.new_zeros((tokens, planes.scale.shape[-2]))
    lossy = planes.remainder is None and planes.exceptions is None
    joined = _is_grouped_by_torch(x, planes, layout[0])
    if lossy and x.dtype != torch.float64 and experts <= _MOST_EXPERTS:
        most = _FEW_ON_TENSOR_CORES if joined and _has_tensor_kernel(layout) else _FEW
        if tokens <= most * experts or not joined:
            few: Tensor = torch.ops.phiquant._grouped_few(x, *arguments)
            return few
    elif tokens < experts or not joined:
        return _grouped_linear(x, *arguments)
    weight = torch.ops.phiquant.decode(*planes, *layout, x.dtype)
    product = torch._grouped_mm(x.contiguous(), weight.transpose(-2, -1), ends.to(torch.int32))
    is_someones = torch.arange(tokens, device=x.device) < ends[-1]
    return torch.where(is_someones.unsqueeze(-1), product, 0)


def _is_grouped_by_torch(x: Tensor, planes: Planes, columns: int) -> bool:
    """Whether torch multiplies such groups on this GPU: bf16, rows of whole 16 bytes."""
    wide = columns % 8 == 0 and planes.scale.shape[-2] % 8 == 0
    capable = torch.cuda.get_device_capability(x.device) >= (9, 0)
    return x.dtype == torch.bfloat16 and wide and capable and x.shape[0] > 0


def _has_tensor_kernel(layout: Any) -> bool:
    """Whether such codes are multiplied on tensor cores, where torch multiplies groups."""
    _, index_bits, deviation_bits, group_size, grid = layout[:5]
    return (index_bits, group_size, grid) == (4, 64, "phi") and deviation_bits <= 4


def _grouped_linear_backward(x: Tensor, *arguments: Any) -> Tensor:
    """``x[start:stop] @ weight[expert]``, ``[tokens, rows]`` to ``[tokens, columns]``."""
    planes, ends, layout = _split(arguments)
    _check(x, planes, ends, planes.scale.shape[-2])
    result = x.new_zeros((x.shape[0], layout[0]))
    for one, start, stop in _groups(planes, ends, layout[0], x.shape[0]):
        result[start:stop] = x[start:stop] @ torch.ops.phiquant.decode(*one, *layout, x.dtype)
    return result


def _gather(indices: Tensor, *arguments: Any) -> Tensor:
    """The decoded ``weight[indices]``, ``[..., rows, columns]``; each expert is decoded once."""
    _check_indices("indices", indices)
    *described, dtype = arguments
    planes, layout = Planes(*described[:COUNT]), described[COUNT:]
    experts, rows = planes.scale.shape[:2]
    places, back = indices.unique(return_inverse=True)
    if places.numel() and (int(places[0]) < 0 or int(places[-1]) >= experts):
        raise IndexError(
            f"index out of range: there are {experts} experts, got numbers from {int(places[0])} "
            f"to {int(places[-1])}"
        )
    once = places.numel() == indices.numel()
    wanted = indices.reshape(-1, 1) if once else places.unsqueeze(-1)
    numbers = (wanted.long() * rows + torch.arange(rows, device=indices.device)).flatten()
    decoded = torch.ops.phiquant.embedding(numbers, *_as_matrix(planes), *layout, dtype)
    decoded = decoded.view(-1, rows, layout[0])
    shape = (*indices.shape, rows, layout[0])
    return (decoded if once else decoded[back.flatten()]).view(shape)


def _as_matrix(planes: Planes) -> Planes:
    """Planes of the rows of all experts one after another."""
    flat: dict[str, Any] = {}
    for name in codec.SHAPED:
        plane = getattr(planes, name)
        flat[name] = None if plane is None else plane.reshape(-1, plane.shape[-1])
    return planes._replace(**flat)


def _split(arguments: tuple[Any, ...]) -> tuple[Planes, Tensor, tuple[Any, ...]]:
    return Planes(*arguments[:COUNT]), arguments[COUNT], arguments[COUNT + 1 :]


def _groups(
    planes: Planes, ends: Tensor, columns: int, tokens: int
) -> Iterator[tuple[Planes, int, int]]:
    """The planes of every expert that has tokens, and where these are."""
    start = 0
    for expert, stop in enumerate(ends.tolist()):
        if not start <= stop <= tokens:
            raise ValueError(
                f"ends: expected ascending numbers of at most {tokens}, the tokens, "
                f"got {stop} after {start}"
            )
        if stop > start:
            yield codec.cut_rows(planes, columns, itemgetter(expert)), start, stop
        start = stop


def _check(x: Tensor, planes: Planes, ends: Tensor, width: int) -> None:
    ops.check_dtype("x", x.dtype)
    if planes.scale.dim() != 3:
        raise ValueError(
            f"weight.scale: expected 3 dimensions, got shape {tuple(planes.scale.shape)}"
        )
    if x.dim() != 2 or x.shape[-1] != width:
        raise ValueError(f"x: expected shape (tokens, {width}), got {tuple(x.shape)}")
    _check_indices("ends", ends)
    if tuple(ends.shape) != (planes.scale.shape[0],):
        expected = f"shape ({planes.scale.shape[0]},), one number an expert"
        raise ValueError(f"ends: expected {expected}, got {tuple(ends.shape)}")


def _check_indices(name: str, numbers: Tensor) -> None:
    if numbers.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: expected torch.int32 or torch.int64, got {numbers.dtype}")


def _fake_grouped_linear(x: Tensor, *arguments: Any) -> Tensor:
    planes, ends, layout = _split(arguments)
    ops.check_device("x", x, planes.index)
    _check(x, planes, ends, layout[0])
    return x.new_empty((x.shape[0], planes.scale.shape[-2]))


def _fake_grouped_linear_backward(x: Tensor, *arguments: Any) -> Tensor:
    planes, ends, layout = _split(arguments)
    ops.check_device("x", x, planes.index)
    _check(x, planes, ends, planes.scale.shape[-2])
    return x.new_empty((x.shape[0], layout[0]))


def _fake_gather(indices: Tensor, index: Tensor, *arguments: Any) -> Tensor:
    ops.check_device("indices", indices, index)
    shape = (*indices.shape, index.shape[-2], arguments[COUNT - 1])
    return index.new_empty(shape, dtype=arguments[-1])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1 : COUNT + 2])
    ctx.layout = inputs[COUNT + 2 :]


def _backward_by(op: Any) -> Any:
    """The two products are each other's derivative; planes and ends have none."""

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_input = op(gradient, *ctx.saved_tensors, *ctx.layout)
        return of_input, *(None for _ in (*ctx.saved_tensors, *ctx.layout))

    return backward


for _name, _kernel, _fake in (
    ("grouped_linear", _grouped_linear, _fake_grouped_linear),
    ("grouped_linear_backward", _grouped_linear_backward, _fake_grouped_linear_backward),
    ("gather", _gather, _fake_gather),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"phiquant::{_name}", _fake, lib=_library)
_library.impl("_grouped_few", _grouped_linear, "CompositeExplicitAutograd")
torch.library.register_fake("phiquant::_grouped_few", _fake_grouped_linear, lib=_library)
if ops.compiled_cuda:
    _library.impl("grouped_linear", _grouped_linear_cuda, "CUDA")
for _name, _derivative in (
    ("grouped_linear", torch.ops.phiquant.grouped_linear_backward),
    ("grouped_linear_backward", torch.ops.phiquant.grouped_linear),
):
    torch.library.register_autograd(
        f"phiquant::{_name}",
        _backward_by(_derivative),
        setup_context=_save_for_backward,
        lib=_library,
    )
