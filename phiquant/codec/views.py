"""Parts of planes: the same bytes, cut by rows or between borders of columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from phiquant.codec.layout import BLOCK, BLOCKS_PER_START, PADDING, Planes

Cut = Callable[[Tensor], Tensor]
SHAPED = ("index", "deviation", "deviation_low", "scale", "offsets")  # have the leading dimensions


def cut_rows(planes: Planes, columns: int, cut: Cut) -> Planes:
    """Planes of some of the rows, at a cost that follows from what is kept.

    Where values can be looked at (not while tracing), the remainder is narrowed to the bytes from
    the first kept block to the last, and exceptions of other rows are left out.

    Args:
        columns: of the weight.
        cut: a view of a tensor with the weight's leading dimensions and one more, which it leaves
            as it is: slices with positive steps and selections.

    Raises:
        ValueError: the starts of the blocks are too few or too many.
    """
    lossy = _lossy(planes, cut)
    if planes.offsets is None and planes.exceptions is None:
        return lossy
    rows = _row_numbers(cut, planes)
    return _of_rows(lossy, planes, columns, rows)


def pick_rows(planes: Planes, rows: Tensor, columns: int) -> Planes:
    """Planes ``[n, ...]`` of the rows of a matrix with these numbers, int64 ``[n]``, distinct."""
    lossy = _lossy(planes, lambda plane: plane.index_select(0, rows))
    return _of_rows(lossy, planes, columns, rows)


def cut_columns(planes: Planes, columns: int, group_size: int, start: int, stop: int) -> Planes:
    """Planes of the columns from one border to another, as narrow as :func:`cut_rows` makes them.

    Args:
        columns: of the weight.
        group_size: of its layout.
        start, stop: multiples of the group size, and of 512 if there is a remainder; ``stop`` may
            be the row's end instead.

    Raises:
        ValueError: the starts of the blocks are too few or too many.
    """
    groups, (*leading, _) = planes.scale.shape[-1], planes.scale.shape
    first, last = start // group_size, -(-stop // group_size)

    def of_groups(plane: Tensor) -> Tensor:
        width = plane.shape[-1] // groups
        return plane[..., first * width : last * width]

    lossy = _lossy(planes, of_groups)
    if planes.offsets is not None:
        in_row = planes.offsets.shape[-1]
        numbers = torch.arange(planes.offsets.numel(), device=planes.scale.device)
        kept = numbers.view(*leading, in_row)[..., start // BLOCK : -(-stop // BLOCK)]
        lossy = _with_blocks(lossy, planes, kept)
    if planes.exceptions is None:
        return lossy
    row, column = planes.exceptions[:, 0] // columns, planes.exceptions[:, 0] % columns
    end = planes.scale.shape[:-1].numel() * (stop - start)
    kept = (column >= start) & (column < stop)
    places = (row * (stop - start) + column - start).clamp(max=end)
    return lossy._replace(exceptions=_moved(planes.exceptions, kept, places, end))


def _lossy(planes: Planes, cut: Cut) -> Planes:
    """The lossy planes, cut."""
    index, deviation, deviation_low, scale = planes[:4]
    return Planes(
        index=cut(index),
        deviation=None if deviation is None else cut(deviation),
        deviation_low=None if deviation_low is None else cut(deviation_low),
        scale=cut(scale),
    )


def _of_rows(lossy: Planes, planes: Planes, columns: int, rows: Tensor) -> Planes:
    """``lossy``, cut already, with the blocks and exceptions of these row numbers."""
    if planes.offsets is not None:
        in_row = planes.offsets.shape[-1]
        blocks = rows.unsqueeze(-1) * in_row + torch.arange(in_row, device=rows.device)
        lossy = _with_blocks(lossy, planes, blocks)
    if planes.exceptions is None or rows.numel() == 0:
        return lossy
    row, column = planes.exceptions[:, 0] // columns, planes.exceptions[:, 0] % columns
    ascending, order = rows.flatten().sort()
    found = torch.searchsorted(ascending, row).clamp(max=rows.numel() - 1)
    places = order[found] * columns + column
    exceptions = _moved(planes.exceptions, ascending[found] == row, places, rows.numel() * columns)
    return lossy._replace(exceptions=exceptions)


def _row_numbers(cut: Cut, planes: Planes) -> Tensor:
    """Which rows ``cut`` keeps, int64 in their new shape: what a view's strides say."""
    kept = cut(torch.empty((*planes.scale.shape[:-1], 1), device="meta"))
    device = planes.scale.device
    numbers: Tensor = torch.zeros((), dtype=torch.int64, device=device)
    numbers = numbers.add(kept.storage_offset())
    for extent, stride in zip(kept.shape[:-1], kept.stride()[:-1], strict=True):
        numbers = numbers.unsqueeze(-1) + torch.arange(extent, device=device) * stride
    return numbers


def _with_blocks(lossy: Planes, planes: Planes, blocks: Tensor) -> Planes:
    """``lossy`` with the blocks of these numbers, ``[..., blocks]``; see :class:`Planes`.starts."""
    assert planes.remainder is not None
    payload, begins = planes.remainder, _begins_at(planes, blocks)
    if _is_eager(planes) and blocks.numel():
        last, steps = int(blocks.flatten()[-1]), blocks.flatten().diff()
        narrowed = _narrowed(planes, begins, last) if bool((steps > 0).all()) else None
        if narrowed is not None:
            payload, begins = narrowed
            follow = _is_tight(planes) and bool((steps == 1).all())
            if follow and (tight := tightened(begins)) is not None:
                return lossy._replace(remainder=payload, offsets=tight[0], starts=tight[1])
    elif _is_eager(planes):
        payload = payload[:PADDING]
    return lossy._replace(
        remainder=payload,
        offsets=torch.zeros_like(begins, dtype=torch.int16),
        starts=begins.flatten().contiguous(),
    )


def _begins_at(planes: Planes, blocks: Tensor) -> Tensor:
    """The bytes at which blocks of these numbers begin."""
    assert planes.offsets is not None
    assert planes.starts is not None
    starts, offsets = planes.starts, planes.offsets.reshape(-1)
    tight = -(-offsets.numel() // BLOCKS_PER_START)
    if starts.numel() not in (tight, offsets.numel()):
        raise ValueError(
            f"starts: expected {tight} or {offsets.numel()} for {offsets.numel()} blocks, "
            f"got {starts.numel()}"
        )
    per_start = BLOCKS_PER_START if _is_tight(planes) else 1
    return starts[blocks // per_start] + (offsets[blocks].long() & 0xFFFF)


def _is_tight(planes: Planes) -> bool:
    """Whether blocks follow each other; a single one does so in either form."""
    assert planes.offsets is not None
    assert planes.starts is not None
    return planes.starts.numel() != planes.offsets.numel()


def _narrowed(planes: Planes, begins: Tensor, last: int) -> tuple[Tensor, Tensor] | None:
    """The payload from the first begin to the end of block ``last``, and the begins in it.

    None where blocks do not ascend or are not inside: decoding says what is wrong with them.
    """
    assert planes.remainder is not None
    assert planes.offsets is not None
    end = planes.remainder.numel() - PADDING
    after = begins.new_tensor([last + 1])
    follows = _begins_at(planes, after) if last + 1 < planes.offsets.numel() else after * 0 + end
    edges = torch.cat([begins.flatten(), follows])
    outside = (edges < 0) | (edges > end)  # or differences may overflow
    if bool(outside.any()) or bool((edges.diff() < 0).any()):
        return None
    first, stop = edges[[0, -1]].tolist()
    return planes.remainder[first : stop + PADDING], begins - first


def tightened(begins: Tensor) -> tuple[Tensor, Tensor] | None:
    """Begins of blocks that follow each other as offsets and starts; None if they are too far."""
    flat = begins.flatten()
    starts = flat[::BLOCKS_PER_START].clone()
    offsets = flat - starts.repeat_interleave(BLOCKS_PER_START)[: flat.numel()]
    if bool((offsets > 0xFFFF).any()):
        return None
    return offsets.to(torch.int32).to(torch.int16).view(begins.shape), starts


def _moved(exceptions: Tensor, kept: Tensor, places: Tensor, end: int) -> Tensor | None:
    """Exceptions at their new places, ascending; while tracing, those left out are at the end."""
    bits = exceptions[:, 1]
    if _is_eager_tensor(exceptions):
        places, bits = places[kept], bits[kept]
        if places.numel() == 0:
            return None
    else:
        places = torch.where(kept, places, end)
    order = places.argsort(stable=True)
    return torch.stack([places[order], bits[order]], dim=-1)


def _is_eager(planes: Planes) -> bool:
    return _is_eager_tensor(planes.scale)


def _is_eager_tensor(tensor: Tensor) -> bool:
    """Whether values can be read now: not while tracing, nor while a CUDA graph is captured."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.is_meta:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
