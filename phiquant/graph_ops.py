"""The products that a compiled graph calls where nothing needs a gradient.

The public op's autograd formula is Python, and torch steps into it at every call, needed or not: in
a graph that costs more than a small product. ``_linear`` has no formula, and its layout is one
number, since each argument has its price. Only :mod:`phiquant.aten.products` calls it, under
torch.compile; an exported program, which outlives its mode, keeps to the public ops.

``_linears`` is several of them with the same input, which compiled kernels make at once: to begin
and to wait for all threads costs as much as a small product. Only :mod:`phiquant.graph_passes`
calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext

from phiquant import ops
from phiquant.grid import GRIDS
from phiquant.ops import COUNT, PLANES, TAGS

# Bits of each field of the number, from its lowest on: as in csrc/binding/packed.h
_WIDTHS = (4, 4, 8, 1, 8, 2, 1)
_LEAST_EXPONENT = -112
_STORED = (None, torch.bfloat16, torch.float16, torch.float32)
# Where several products are made at once: the reference makes one after the other
DEVICES = frozenset(
    name for name, there in (("cpu", ops.compiled), ("cuda", ops.compiled_cuda)) if there
)

_library = torch.library.Library("phiquant", "FRAGMENT")
_library.define(
    f"_linear(Tensor x, {PLANES}, Tensor? bias, int columns, int layout) -> Tensor", tags=TAGS
)
# What the layout does not have, or the caller, is an empty list; others have one entry a weight.
# There is no list of exceptions: weights that have some are multiplied on their own.
_library.define(
    "_linears(Tensor x, Tensor[] index, Tensor[] deviation, Tensor[] deviation_low, "
    "Tensor[] scale, Tensor[] remainder, Tensor[] offsets, Tensor[] starts, Tensor[] bias, "
    "int columns, int layout) -> Tensor[]",
    tags=TAGS,
)


def pack(
    index_bits: int,
    deviation_bits: int,
    group_size: int,
    grid: str,
    exponent: int,
    stored_dtype: torch.dtype | None,
    int8: bool,
) -> int:
    """The arguments of ``phiquant::linear`` after the columns, and which of its two ops, as one."""
    return (
        index_bits
        | deviation_bits << 4
        | group_size << 8
        | GRIDS.index(grid) << 16
        | (exponent - _LEAST_EXPONENT) << 17
        | _STORED.index(stored_dtype) << 25
        | int8 << 27
    )


def unpack(code: int) -> tuple[int, int, int, str, int, torch.dtype | None, bool]:
    """What :func:`pack` was given."""
    if code < 0 or code >> sum(_WIDTHS):
        raise ValueError(f"layout: expected a number of {sum(_WIDTHS)} bits, got {code}")
    fields = []
    for width in _WIDTHS:
        fields.append(code & ((1 << width) - 1))
        code >>= width
    index_bits, deviation_bits, group_size, grid, exponent, stored, int8 = fields
    exponent += _LEAST_EXPONENT
    return (
        index_bits,
        deviation_bits,
        group_size,
        GRIDS[grid],
        exponent,
        _STORED[stored],
        bool(int8),
    )


def _linear(x: Tensor, *arguments: Any) -> Tensor:
    *tensors, columns, code = arguments
    *layout, int8 = unpack(code)
    op = torch.ops.phiquant.linear_int8 if int8 else torch.ops.phiquant.linear
    product: Tensor = op(x, *tensors, columns, *layout)
    return product


def _fake_linear(x: Tensor, index: Tensor, *arguments: Any) -> Tensor:
    """Dynamo calls this before anything is looked up in a cache: graphs' keys know of the pass."""
    if index.device.type in DEVICES and TracingContext.try_get() is not None:
        from phiquant import graph_passes  # it needs Inductor, which importing phiquant does not

        graph_passes.register()
    return ops.fake_linear(x, index, *arguments)


def _linears(x: Tensor, index: list[Tensor], *arguments: Any) -> list[Tensor]:
    *lists, columns, code = arguments
    _check_lists(len(index), lists, code)
    absent = (None,) * len(index)
    rows = zip(index, *(given or absent for given in lists), strict=True)
    return [
        torch.ops.phiquant._linear(x, *planes, None, bias, columns, code) for *planes, bias in rows
    ]


def _fake_linears(x: Tensor, index: list[Tensor], *arguments: Any) -> list[Tensor]:
    *lists, columns, code = arguments
    _check_lists(len(index), lists, code)
    planes = (None,) * (COUNT - 1)  # whose sizes no product depends on
    return [ops.fake_linear(x, one, *planes, None, columns, code) for one in index]


def _check_lists(weights: int, lists: Sequence[list[Tensor]], code: int) -> None:
    deviation_bits, exact = unpack(code)[1], unpack(code)[5] is not None
    present = {
        "deviation": deviation_bits > 0,
        "deviation_low": deviation_bits > 4,
        "scale": True,
        "remainder": exact,
        "offsets": exact,
        "starts": exact,
        "bias": len(lists[-1]) > 0,
    }
    for (name, is_present), given in zip(present.items(), lists, strict=True):
        wanted = weights if is_present else 0
        if len(given) != wanted:
            raise ValueError(
                f"{name}: expected {wanted} tensors, for {weights} {'exact ' * exact}weights with "
                f"{deviation_bits} deviation bits, got {len(given)}"
            )


for _name, _kernel, _fake in (
    ("_linear", _linear, _fake_linear),
    ("_linears", _linears, _fake_linears),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"phiquant::{_name}", _fake, lib=_library)
