"""From the parts that ranks hold back to the whole compressed weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from phiquant import checksum
from phiquant.sharding.anew import encode_anew
from phiquant.sharding.intervals import Intervals, all_intervals
from phiquant.tensor import PhiTensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement


def gathered(param: DTensor) -> Tensor:
    """The whole weight of a DTensor, compressed if its parts are, with a checksum if it is exact.

    ``param.full_tensor()`` is that for one run of rows a rank; the interleaved runs of a fused
    weight (gate and up in one) it would decode.

    Collective: every rank of the mesh calls it, and every one gets the whole.
    """
    local = param.to_local()
    if isinstance(local, PhiTensor) and local.is_exact:  # what is decoded on the way keeps all bits
        param = _like(param, local._with(dtype=torch.float32))
    parts = all_intervals(param.shape, param.device_mesh, param.placements)
    dims = [dim for dim, held in enumerate(parts[0]) if any(p[dim] != held for p in parts)]
    is_fused = any(len(part[dim]) > 1 for part in parts for dim in dims)
    if is_fused and len(dims) == 1 and param.device_mesh.ndim == 1:
        whole = _in_place(_in_order_of_ranks(param, dims[0]), parts, dims[0])
    else:
        whole = param.full_tensor()
    if not (isinstance(local, PhiTensor) and local.is_exact):
        return whole
    if not isinstance(whole, PhiTensor):  # parts of blocks have no planes in common
        return encode_anew(whole, local)
    sums = checksum.checksum(whole._decoded_parts())
    return whole._with(checksum_plane=sums, dtype=local.dtype)


def _in_order_of_ranks(param: DTensor, dim: int) -> Tensor:
    """What the ranks hold, one after the other, as if each held one run."""
    from torch.distributed.tensor import Shard

    return _like(param, param.to_local(), [Shard(dim)]).full_tensor()


def _like(param: DTensor, local: Tensor, placements: Sequence[Placement] = ()) -> DTensor:
    """``local`` in the place of what this rank holds of ``param``."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        param.device_mesh,
        placements or param.placements,
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )


def _in_place(whole: Tensor, parts: list[Intervals], dim: int) -> Tensor:
    """Runs in the order of ranks, put where they belong."""
    pieces, place = [], 0
    for start, stop in (run for part in parts for run in part[dim]):
        pieces.append((start, whole.narrow(dim, place, stop - start)))
        place += stop - start
    return torch.cat([piece for _, piece in sorted(pieces, key=lambda piece: piece[0])], dim)
