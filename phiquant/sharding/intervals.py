"""Which part of a tensor a rank holds: intervals of every dimension, from DTensor's placements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement

Intervals = list[list[tuple[int, int]]]


def intervals_of(
    shape: Sequence[int], mesh: DeviceMesh, placements: Sequence[Placement]
) -> Intervals:
    """``[start, stop)`` intervals of every dimension that this rank holds, in their order.

    Args:
        shape: of the whole tensor.
        mesh: the ranks; this process is one of them.
        placements: one for every dimension of the mesh.

    Raises:
        ValueError: a placement is a partial sum, or this process is not in the mesh.
    """
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError(f"mesh: this rank is not one of {mesh}")
    return _intervals(shape, mesh.shape, coordinate, placements)


def all_intervals(
    shape: Sequence[int], mesh: DeviceMesh, placements: Sequence[Placement]
) -> list[Intervals]:
    """What every rank holds, as :func:`intervals_of` tells for one."""
    ranks = product(*(range(extent) for extent in mesh.shape))
    return [_intervals(shape, mesh.shape, rank, placements) for rank in ranks]


def _intervals(
    shape: Sequence[int],
    mesh_shape: Sequence[int],
    coordinate: Sequence[int],
    placements: Sequence[Placement],
) -> Intervals:
    numbers = [torch.arange(extent) for extent in shape]
    for rank, ranks, placement in zip(coordinate, mesh_shape, placements, strict=True):
        if placement.is_partial():
            raise ValueError(f"placements: a weight cannot be a partial sum, got {placement}")
        if not placement.is_replicate():
            dim = placement.dim % len(shape)  # type: ignore[attr-defined]
            factor = getattr(placement, "split_factor", 1)
            numbers[dim] = _held(numbers[dim], rank, ranks, factor)
    return [_runs(held) for held in numbers]


def _held(numbers: Tensor, rank: int, ranks: int, factor: int) -> Tensor:
    """What stays of ``numbers``; a fused weight has ``factor`` parts, and a rank some of each."""
    chunks = numbers.chunk(ranks * factor) if numbers.numel() else ()
    held = [chunks[part * ranks + rank : part * ranks + rank + 1] for part in range(factor)]
    return torch.cat([numbers[:0], *(chunk for some in held for chunk in some)])


def _runs(numbers: Tensor) -> list[tuple[int, int]]:
    """Ascending runs of consecutive numbers."""
    if numbers.numel() == 0:
        return []
    breaks = (numbers.diff() != 1).nonzero().flatten() + 1
    runs = numbers.tensor_split(breaks.tolist())
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]
