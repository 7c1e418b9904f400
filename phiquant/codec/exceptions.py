"""The exception plane: weights that no sub-cell holds, kept as they are.

Infinities and NaN have no place on a grid, and at the border of fp32 no scale may cover a group.
Their fp32 bits say them in every dtype: bf16 and fp16 widen to fp32 and come back bit by bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_INFINITY, _HALF_INFINITY = 0x7F800000, 0x7C00


def collect(weight: Tensor, astray: Tensor) -> Tensor:
    """The exceptions of a weight where ``astray`` is True: int64 ``[n, 2]``, places and bits."""
    places = astray.flatten().nonzero().squeeze(-1)
    return torch.stack([places, widened_bits(weight.flatten()[places])], dim=-1)


def put(weight: Tensor, exceptions: Tensor | None, rows: Tensor | None = None) -> Tensor:
    """``weight`` ``[..., columns]`` with its exceptions in place.

    Args:
        exceptions: int64 ``[n, 2]`` of the flat stored weight, ascending, or None.
        rows: the stored row that each row of ``weight`` is, or None if it is the whole.

    Raises:
        ValueError: a place or bits are out of range, or the places do not ascend.
    """
    if exceptions is None or exceptions.shape[0] == 0 or weight.numel() == 0:
        return weight
    check(exceptions)
    places, bits = (part.contiguous() for part in exceptions.unbind(-1))
    flat, columns = weight.reshape(-1, weight.shape[-1]).clone(), weight.shape[-1]
    here = torch.arange(flat.shape[0], device=flat.device) if rows is None else rows.flatten()
    first, last = (torch.searchsorted(places, (here + step) * columns) for step in (0, 1))
    for row in (last > first).nonzero().squeeze(-1).tolist():
        part = slice(int(first[row]), int(last[row]))
        flat[row, places[part] - here[row] * columns] = from_widened_bits(bits[part], weight.dtype)
    return flat.view(weight.shape)


def check(exceptions: Tensor) -> None:
    """Raise ValueError unless places ascend from 0 on, and each has 32 bits."""
    places, bits = exceptions.unbind(-1)
    if bool((places < 0).any() | (places.diff() < 0).any() | (bits < 0).any() | (bits >> 32).any()):
        raise ValueError(
            "exceptions: expected ascending places and 32 bits for each; they are corrupt"
        )


def widened_bits(weight: Tensor) -> Tensor:
    """The fp32 bits of weights, int64 from 0 to 2^32 - 1; by integers, so that NaNs keep theirs."""
    bits = weight.view(_INTEGERS[weight.dtype]).long()
    if weight.dtype == torch.bfloat16:
        return (bits & 0xFFFF) << 16
    if weight.dtype == torch.float32:
        return bits & 0xFFFFFFFF
    special = (bits & 0x8000) << 16 | _INFINITY | (bits & 0x3FF) << 13
    finite = weight.float().view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits & _HALF_INFINITY == _HALF_INFINITY, special, finite)


def from_widened_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse; bits of a wider dtype are rounded, a NaN staying one, the rest saturated."""
    signed = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32)
    value = signed.view(torch.float32)
    if dtype == torch.float32:
        return value
    largest = torch.finfo(dtype).max
    finite = value.clamp(-largest, largest).to(dtype)
    shift, exponent = (16, 0x7F80) if dtype == torch.bfloat16 else (13, _HALF_INFINITY)
    mantissa = (bits & 0x7FFFFF) >> shift
    quiet = (exponent & -exponent) >> 1
    lost = (mantissa == 0) & (bits & 0x7FFFFF != 0)  # a NaN whose payload is too fine for dtype
    special = (bits >> 16 & 0x8000) | exponent | torch.where(lost, quiet, mantissa)
    special = torch.where(special >= 1 << 15, special - (1 << 16), special).to(torch.int16)
    return torch.where(value.isfinite(), finite, special.view(dtype))
