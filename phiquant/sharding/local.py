"""From a whole compressed weight to what this rank puts into a DTensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from phiquant.sharding.cut import cut
from phiquant.sharding.intervals import all_intervals, intervals_of
from phiquant.tensor import PhiTensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def local_shard(tensor: PhiTensor, param: DTensor) -> Tensor:
    """The local tensor of a DTensor that is sharded as ``param`` and has the values of ``tensor``.

    No collective is called: every rank has the whole tensor, for example on mapped memory, of
    which a view reads only its own pages.

    Args:
        tensor: the whole weight.
        param: says mesh, placements and shape; its values are not read.

    Returns:
        A PhiTensor; or a plain tensor where a group would have to be cut (see :func:`cut`).

    Raises:
        ValueError: the shapes differ, or a placement is a partial sum.
    """
    if tuple(tensor.shape) != tuple(param.shape):
        raise ValueError(
            f"{tensor.describe()}: has shape {tuple(tensor.shape)}, but the parameter that it is "
            f"to be sharded for has {tuple(param.shape)}"
        )
    where = (param.shape, param.device_mesh, param.placements)
    local = cut(tensor, intervals_of(*where), all_intervals(*where))
    wanted = tuple(param.to_local().shape)
    if tuple(local.shape) != wanted:
        raise ValueError(
            f"{tensor.describe()}: {param.placements} gives a shard of shape "
            f"{tuple(local.shape)}, but the parameter's is {wanted}; shard a dimension that the "
            "number of ranks divides"
        )
    return local
