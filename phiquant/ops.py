"""``torch.ops.phiquant``: schemas, fakes, autograd and the reference kernels.

The compiled library holds kernels only, and registers them over the reference ones. Arguments that
describe the planes are those of :class:`phiquant.codec.Layout`; planes that a layout does not have
are None as inputs, and tensors of width zero as outputs of ``encode``. An exact weight takes both
``encode``, which chooses the lossy planes, and ``encode_remainder``.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from phiquant import codec
from phiquant.codec import Layout, Planes
from phiquant.codec.layout import BLOCKS_PER_START, PADDING

_LOSSY = "Tensor index, Tensor? deviation, Tensor? deviation_low, Tensor scale"
_EXACT = "Tensor? remainder, Tensor? offsets, Tensor? starts, Tensor? exceptions"
PLANES = f"{_LOSSY}, {_EXACT}"
BITS = (
    "int index_bits, int deviation_bits, int group_size, str grid, int exponent, "
    "ScalarType? stored_dtype"
)
COUNT = len(Planes._fields)
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)

_library = torch.library.Library("phiquant", "DEF")
_library.define(
    f"encode(Tensor weight, Tensor? importance, {BITS}, str fit) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    tags=TAGS,
)
_library.define(
    f"encode_remainder(Tensor weight, {_LOSSY}, {BITS}) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=TAGS,
)
_library.define(f"decode({PLANES}, int columns, {BITS}, ScalarType dtype) -> Tensor", tags=TAGS)
_library.define(
    f"linear(Tensor x, {PLANES}, Tensor? bias, int columns, {BITS}) -> Tensor", tags=TAGS
)
# The same, but rows of x may be rounded where a kernel is faster for it: to int8, each with a scale
# of its own, by indices alone; to bf16 where there are deviations. Kernels that are not faster take
# x as it is.
_library.define(
    f"linear_int8(Tensor x, {PLANES}, Tensor? bias, int columns, {BITS}) -> Tensor", tags=TAGS
)
# Of the compiled library alone: a tensor that stands for the planes and the layout of a product.
_library.define(f"_prepare({PLANES}, int columns, {BITS}, bool int8) -> Tensor")
_library.define("_prepared_linear(Tensor x, Tensor prepared, Tensor? bias) -> Tensor")
# And what its choice of an instruction set was made from, as JSON.
_library.define("isa() -> str")
_library.define(
    f"embedding(Tensor indices, {PLANES}, int columns, {BITS}, ScalarType dtype) -> Tensor",
    tags=TAGS,
)


def _encode(weight: Tensor, importance: Tensor | None, *bits: Any) -> tuple[Tensor, ...]:
    *shape, fit = bits
    if weight.dtype not in codec.DTYPES:
        raise ValueError(f"weight: expected bfloat16, float16 or float32, got {weight.dtype}")
    if importance is not None and tuple(importance.shape) != (weight.shape[-1],):
        raise ValueError(
            f"importance: expected shape ({weight.shape[-1]},), got {tuple(importance.shape)}"
        )
    planes = codec.encode(weight, Layout(weight.shape[-1], *shape), fit, importance)
    absent = (*weight.shape[:-1], 0)
    return tuple(planes.index.new_empty(absent) if p is None else p for p in planes[:4])


def _encode_remainder(weight: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    planes, layout = Planes(*arguments[:4]), Layout(weight.shape[-1], *arguments[4:])
    _check_stored(weight, layout)
    layout.without_remainder.check(planes)
    return codec.encode_remainder(weight, planes, layout)[4:]  # type: ignore[return-value]


def _decode(*arguments: Any) -> Tensor:
    *described, dtype = arguments
    planes, layout = Planes(*described[:COUNT]), Layout(*described[COUNT:])
    check_dtype("dtype", dtype)
    if dtype == torch.float64:  # for numerical checks: the fp32 decode, wider
        return codec.decode(planes, layout).double()
    return codec.decode(planes, layout, dtype)


def _linear(x: Tensor, *arguments: Any) -> Tensor:
    planes, bias, layout = arguments[:COUNT], arguments[COUNT], arguments[COUNT + 1 :]
    _check_input(x, layout[0])
    _check_bias(bias, x.dtype, planes[0].shape[0])
    weight = _decode(*planes, *layout, x.dtype)
    return functional.linear(x, weight, bias)


def _linear_int8(x: Tensor, *arguments: Any) -> Tensor:
    check_dtype("x", x.dtype)
    _, _, deviation_bits, *_ = arguments[COUNT + 1 :]
    return _linear(x.bfloat16().to(x.dtype) if deviation_bits else round_to_int8(x), *arguments)


def round_to_int8(x: Tensor) -> Tensor:
    """Rows of ``x`` as int8 activations have them: 127 steps to the largest magnitude of each."""
    largest = x.detach().float().abs().amax(-1, keepdim=True) if x.numel() else x.float()
    step = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return ((x.float() / step).round() * step).to(x.dtype)


def _embedding(indices: Tensor, *arguments: Any) -> Tensor:
    """Decodes only the rows that are asked for, like the compiled kernel."""
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices: expected torch.int32 or torch.int64, got {indices.dtype}")
    *described, dtype = arguments
    planes, layout = Planes(*described[:COUNT]), described[COUNT:]
    rows, place = indices.unique(return_inverse=True)
    picked = codec.pick_rows(planes, rows.long(), layout[0])
    return functional.embedding(place, _decode(*picked, *layout, dtype))


def _fake_encode(weight: Tensor, importance: Tensor | None, *bits: Any) -> tuple[Tensor, ...]:
    layout = Layout(weight.shape[-1], *bits[:-1])
    widths = (layout.index_bits, layout.high_bits, layout.low_bits)
    leading = weight.shape[:-1]
    planes = [
        weight.new_empty((*leading, layout.row_bytes(width)), dtype=torch.uint8) for width in widths
    ]
    return *planes, weight.new_empty((*leading, layout.groups), dtype=torch.int16)


def _fake_encode_remainder(weight: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    layout = Layout(weight.shape[-1], *arguments[4:])
    _check_stored(weight, layout)
    context = torch.library.get_ctx()
    size, exceptions = context.new_dynamic_size(min=PADDING), context.new_dynamic_size(min=0)
    blocks = math.prod(weight.shape[:-1]) * layout.blocks
    starts = (blocks + BLOCKS_PER_START - 1) // BLOCKS_PER_START
    return (
        weight.new_empty(size, dtype=torch.uint8),
        weight.new_empty((*weight.shape[:-1], layout.blocks), dtype=torch.int16),
        weight.new_empty(starts, dtype=torch.int64),
        weight.new_empty((exceptions, 2), dtype=torch.int64),
    )


def _fake_decode(index: Tensor, *arguments: Any) -> Tensor:
    columns, dtype = arguments[COUNT - 1], arguments[-1]
    return index.new_empty((*index.shape[:-1], columns), dtype=dtype)


def fake_linear(x: Tensor, index: Tensor, *arguments: Any) -> Tensor:
    check_device("x", x, index)
    _check_input(x, arguments[COUNT])
    return x.new_empty((*x.shape[:-1], index.shape[0]))


def _fake_embedding(indices: Tensor, index: Tensor, *arguments: Any) -> Tensor:
    check_device("indices", indices, index)
    columns, dtype = arguments[COUNT - 1], arguments[-1]
    return index.new_empty((*indices.shape, columns), dtype=dtype)


def _check_stored(weight: Tensor, layout: Layout) -> None:
    if layout.stored_dtype is None:
        raise ValueError(f"stored_dtype: expected {weight.dtype}, as the weight, got None")
    if weight.dtype != layout.stored_dtype:
        raise ValueError(f"weight: expected {layout.stored_dtype}, as stored, got {weight.dtype}")


def _check_input(x: Tensor, columns: int) -> None:
    check_dtype("x", x.dtype)
    if x.shape[-1] != columns:
        raise ValueError(f"x: expected a last dimension of {columns}, got shape {tuple(x.shape)}")


def _check_bias(bias: Tensor | None, dtype: torch.dtype, rows: int) -> None:
    if bias is not None and (bias.dtype != dtype or tuple(bias.shape) != (rows,)):
        got = f"{bias.dtype} of shape {tuple(bias.shape)}"
        raise ValueError(f"bias: expected {dtype} of shape ({rows},), got {got}")


def check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in codec.DTYPES and dtype != torch.float64:
        raise ValueError(f"{name}: expected bfloat16, float16 or float32, got {dtype}")


def check_device(name: str, tensor: Tensor, index: Tensor) -> None:
    """A fake also runs where only the planes are on the meta device: nothing would be computed."""
    if tensor.device != index.device:
        raise ValueError(f"{name}: is on {tensor.device}, but the weight is on {index.device}")


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, planes, (bias, *ctx.layout) = inputs[0], inputs[1 : COUNT + 1], inputs[COUNT + 1 :]
    ctx.save_for_backward(*planes)
    ctx.dtype, ctx.has_bias = x.dtype, bias is not None


def _linear_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    of_input, of_bias = linear_gradients(
        gradient if ctx.needs_input_grad[0] else None,
        gradient if ctx.needs_input_grad[COUNT + 1] and ctx.has_bias else None,
        *ctx.saved_tensors,
        *ctx.layout,
        ctx.dtype,
    )
    return of_input, *(None,) * COUNT, of_bias, *(None for _ in ctx.layout)


def linear_gradients(
    for_input: Tensor | None, for_bias: Tensor | None, *arguments: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and the bias, None where none is asked for.

    The planes are integers and have none. ``arguments`` are those of ``decode``.
    """
    of_input = of_bias = None
    if for_input is not None:
        of_input = for_input @ torch.ops.phiquant.decode(*arguments)
    if for_bias is not None:
        of_bias = for_bias.flatten(0, -2).sum(0) if for_bias.dim() > 1 else for_bias
    return of_input, of_bias


for _name, _kernel, _fake in (
    ("encode", _encode, _fake_encode),
    ("encode_remainder", _encode_remainder, _fake_encode_remainder),
    ("decode", _decode, _fake_decode),
    ("linear", _linear, fake_linear),
    ("linear_int8", _linear_int8, fake_linear),
    ("embedding", _embedding, _fake_embedding),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"phiquant::{_name}", _fake, lib=_library)
for _name in ("linear", "linear_int8"):  # rounding lets the gradient through
    torch.library.register_autograd(
        f"phiquant::{_name}", _linear_backward, setup_context=_save_for_backward, lib=_library
    )


def library_path() -> Path:
    """Where the compiled kernels are, if there are any: next to this file."""
    return Path(__file__).with_name("_C.abi3.so")


def cuda_library_path() -> Path:
    """Where those for NVIDIA GPUs are, if there are any."""
    return Path(__file__).with_name("_C_cuda.abi3.so")


def _load_compiled() -> str:
    """Load the compiled kernels; say once what it means if they are missing, and return why."""
    try:
        if not library_path().exists():
            raise FileNotFoundError("it was installed without a C++ compiler")
        torch.ops.load_library(library_path())
    except (OSError, FileNotFoundError) as error:
        warnings.warn(
            f"phiquant runs without its compiled kernels ({error}). Results are the same; "
            "compressing is about 100 times slower, a linear layer with one row some 500 times. "
            "Remedy: install a C++ compiler and reinstall phiquant.",
            RuntimeWarning,
            stacklevel=2,
        )
        return str(error)
    return ""


def _load_compiled_cuda() -> str:
    """Load the kernels for GPUs, which does not start CUDA; return why not, if not.

    Nothing is said without them: there may be no GPU, or no weight may ever be on it.
    """
    if torch.version.cuda is None:
        return "this torch is built without it"
    if not cuda_library_path().exists():
        return f"{cuda_library_path().name} was not built"
    try:
        torch.ops.load_library(cuda_library_path())
    except OSError as error:
        return str(error)
    return ""


why_not_compiled: str = _load_compiled()
compiled: bool = not why_not_compiled
why_not_compiled_cuda: str = _load_compiled_cuda()
compiled_cuda: bool = not why_not_compiled_cuda
