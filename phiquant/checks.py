"""What a weight must be like to be compressed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phiquant.codec import DTYPES


def why_not_compressible(weight: Tensor) -> str:
    """Why a tensor of this kind cannot be compressed, from all but its values; empty if it can."""
    if weight.dtype not in DTYPES:
        return f"expected bfloat16, float16 or float32, got {weight.dtype}"
    if weight.layout != torch.strided or weight.is_nested:
        kind = "nested" if weight.is_nested else weight.layout
        return f"expected a dense tensor, got a {kind} one"
    if weight.dim() < 2:
        return f"expected at least 2 dimensions, got shape {tuple(weight.shape)}"
    if weight.numel() == 0:
        return f"expected a non-empty tensor, got shape {tuple(weight.shape)}"
    return ""


def check_weight(weight: Tensor, name: str, exact: bool = False) -> float:
    """The largest finite magnitude of a weight that can be compressed.

    Args:
        weight: what is to be compressed.
        name: what to call it in messages.
        exact: whether it may hold NaN and infinity, because every bit is kept.

    Raises:
        TypeError: it is not a plain tensor, or not of a supported dtype.
        ValueError: it is not dense, has fewer than 2 dimensions, is empty, is on the meta device
            or holds NaN or infinity and is not to be exact.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(weight).__name__}")
    reason = why_not_compressible(weight)
    if reason:
        raise (ValueError if weight.dtype in DTYPES else TypeError)(f"{name}: {reason}")
    if weight.is_meta:
        raise ValueError(f"{name}: is on the meta device and holds no values; load it first")
    low, high = _extremes(weight.detach())
    if exact and not (math.isfinite(low) and math.isfinite(high)):
        low, high = _extremes(torch.where(weight.isfinite(), weight.detach(), 0))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{name}: holds NaN or infinity; only finite weights can be compressed, unless "
            "exact=True keeps every bit"
        )
    return max(-low, high)


def _extremes(weight: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(weight)
    return low.item(), high.item()


def check_importance(importance: Tensor | None, columns: int) -> None:
    """Raise ValueError unless this is None or one finite, non-negative value a column."""
    if importance is None:
        return
    if tuple(importance.shape) != (columns,):
        got = f"got shape {tuple(importance.shape)}"
    elif not bool((importance.isfinite() & (importance >= 0)).all()):
        got = "got NaN, infinity or a negative value"
    else:
        return
    raise ValueError(f"importance: expected {columns} finite values >= 0, one a column; {got}")
