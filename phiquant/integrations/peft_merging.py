"""A weight that changed, compressed again as it was before."""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor, nn

from phiquant.quantize import compress_parameter
from phiquant.storage import Storage
from phiquant.tensor import PhiTensor

_told: set[str] = set()
_GROWTH = 1.25  # an exact form that grew by more than this is worth a word


def compress_like(before: PhiTensor, weight: Tensor) -> nn.Parameter:
    """Compress ``weight`` with the settings and layout of ``before``, and say what is lost.

    Args:
        before: what stood in the weight's place.
        weight: plain, of the same shape and dtype.

    Returns:
        A frozen parameter: a PhiTensor, or the plain weight if its exact form would not be smaller.

    Raises:
        ValueError: the weight holds NaN or infinity and is not to be exact; the message names it.
    """
    config, name = before.config, before.describe()
    stored = Storage(before.transposed, len(before.column_shape) or 1).apply(weight)
    outcome = compress_parameter(stored, config, name)
    if outcome.parameter is None:
        tell_once("plain", f"{name}: the merged weight stays uncompressed: {outcome.reason}")
        return nn.Parameter(weight, requires_grad=False)
    after = cast(PhiTensor, outcome.parameter)._with(
        transposed=before.transposed, column_shape=before.column_shape
    )
    (_tell_growth if config.exact else _tell_loss)(before, weight, after)
    return nn.Parameter(after, requires_grad=False)


def _tell_loss(before: PhiTensor, weight: Tensor, after: PhiTensor) -> None:
    """A lossy weight is rounded anew: how much that is against what was merged."""
    wanted = weight.float()
    change = torch.linalg.vector_norm(wanted - before.dequantize(torch.float32)).item()
    rounding = torch.linalg.vector_norm(wanted - after.dequantize(torch.float32)).item()
    if not rounding:
        return
    times = f"{rounding / change:.2g} times as large as" if change else "all there is of"
    tell_once(
        f"lossy {before.index_bits} {before.deviation_bits}",
        f"{before.describe()}: the merged weight is rounded to {after.bits_per_weight:.4g} bits "
        f"again, and that rounding is {times} the adapter's change. To lose nothing keep the "
        "adapter apart, or call phiquant.dequantize_(model) before merging",
    )


def _tell_growth(before: PhiTensor, weight: Tensor, after: PhiTensor) -> None:
    if after.stored_bytes > _GROWTH * before.stored_bytes:
        tell_once(
            "growth",
            f"{before.describe()}: the merged weight takes {after.bits_per_weight:.1f} bits, the "
            f"one before took {before.bits_per_weight:.1f}: it held {before.stored_dtype} numbers, "
            f"and merging made {weight.dtype} ones. A model that is loaded in "
            f"{before.stored_dtype} stays small",
        )


def tell_once(kind: str, message: str) -> None:
    """Once for each kind: a model has hundreds of such layers."""
    if kind not in _told:
        _told.add(kind)
        more = " (and so it is with other layers)"
        warnings.warn(f"phiquant: {message}{more}", UserWarning, stacklevel=2)
