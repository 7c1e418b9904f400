"""Parts of planes: the same bytes, cut by rows or by whole groups of columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from phiquant.codec.layout import Planes
from phiquant.codec.remainder import begins_of

Cut = Callable[[Tensor], Tensor]


def cut_rows(planes: Planes, columns: int, cut: Cut) -> Planes:
    """Planes of some of the rows.

    Args:
        columns: of the weight.
        cut: picks among leading dimensions, and leaves the last one as it is. It is given every
            plane that has them, and int64 tensors.
    """
    lossy = (None if plane is None else cut(plane) for plane in planes[:4])
    begins = None if planes.offsets is None else cut(begins_of(planes))
    return _with_blocks(Planes(*lossy), planes, begins)._replace(
        exceptions=_exceptions(planes, columns, cut)
    )


def pick_rows(planes: Planes, rows: Tensor, columns: int) -> Planes:
    """Planes ``[n, ...]`` of the rows with these numbers, int64 ``[n]`` and distinct, of a matrix."""
    return cut_rows(planes, columns, lambda plane: plane.index_select(0, rows))


def _with_blocks(lossy: Planes, planes: Planes, begins: Tensor | None) -> Planes:
    """Blocks that begin at ``begins``, each with a start of its own, as a view's may be anywhere."""
    if begins is None:
        return lossy
    return lossy._replace(
        remainder=planes.remainder,
        offsets=torch.zeros_like(begins, dtype=torch.int16),
        starts=begins.flatten().contiguous(),
    )


def _exceptions(planes: Planes, columns: int, cut: Cut) -> Tensor | None:
    """Exceptions at their new places, sorted; those of rows that are left out past the end."""
    if planes.exceptions is None:
        return None
    leading = planes.scale.shape[:-1]
    count = leading.numel()
    device = planes.scale.device
    kept = cut(torch.arange(count, device=device).view(*leading, 1)).flatten()
    moved = torch.full((count + 1,), kept.numel(), device=device)
    moved[kept] = torch.arange(kept.numel(), device=device)
    places, bits = planes.exceptions.unbind(-1)
    row = (places // columns).clamp(max=count)
    places = moved[row] * columns + places % columns
    order = places.argsort(stable=True)
    return torch.stack([places[order], bits[order]], dim=-1)
