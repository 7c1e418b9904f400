"""Tensor parallelism of transformers (``tp_plan``): every rank compresses and holds its shard.

transformers makes a DTensor of a parameter that ranks share, and reads from the file what this
rank holds of it. Ranks agree on what they do with a weight, so that all hold the same kind.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from phiquant.checks import check_weight
from phiquant.codec import exponent_for
from phiquant.plan import Slot, why_it_grew
from phiquant.quantize import Outcome, check_every_bit, relative_error
from phiquant.sharding import all_intervals, gathered, why_not_columns
from phiquant.tensor import PhiTensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_shared(parameter: object) -> TypeGuard[DTensor]:
    """Whether ranks share this parameter: it is a DTensor."""
    return isinstance(parameter, Tensor) and hasattr(parameter, "device_mesh")


def held(parameter: Any) -> Any:
    """What this rank holds of a parameter: the local tensor of a DTensor, else itself."""
    return parameter._local_tensor if is_shared(parameter) else parameter


def whole(parameter: Tensor) -> PhiTensor:
    """A compressed weight; one that ranks share is gathered, for which all of them call this."""
    tensor = gathered(parameter) if is_shared(parameter) else parameter
    assert isinstance(tensor, PhiTensor)
    return tensor


def device_of(place: DTensor) -> torch.device:
    """Where this rank keeps its part."""
    kind = place.device_mesh.device_type
    if kind == "cpu":
        return torch.device(kind)
    return torch.device(kind, torch.get_device_module(kind).current_device())


def compress_shard(shard: Tensor, slot: Slot, name: str, place: DTensor) -> Outcome:
    """Compress this rank's part of a weight, if every rank can compress its own.

    Collective: all ranks of the mesh call it for the same weights in the same order.

    Raises:
        ValueError: some rank's part holds NaN or infinity, and the weight is not to be exact.
    """
    assert slot.config is not None
    if reason := why_not_shard(slot, place):
        return Outcome(None, reason=reason)
    try:
        largest, error = check_weight(shard, name, slot.config.exact), None
    except (TypeError, ValueError) as failed:
        largest, error = math.inf, failed
    largest = _largest(largest, place, shard.device)
    if error is not None or largest == math.inf:
        raise error or ValueError(f"{name}: the part of another rank cannot be compressed")
    tensor = PhiTensor.from_hp(
        shard, slot.config, name=name, exponent=exponent_for(largest), **slot.storage._asdict()
    )
    reason = why_it_grew(tensor, shard.dtype)
    if slot.config.exact and _largest(float(bool(reason)), place, shard.device):
        return Outcome(None, reason=reason or "the exact form of another rank's part would grow")
    if slot.config.exact:
        check_every_bit(shard, tensor)
        return Outcome(nn.Parameter(tensor, requires_grad=False), 0.0)
    return Outcome(nn.Parameter(tensor, requires_grad=False), relative_error(shard, tensor))


def why_not_shard(slot: Slot, place: DTensor) -> str:
    """Why the parts of a weight cannot be compressed one by one; empty if they can.

    A lossy shard whose groups are not the whole weight's would give other results than one
    process; an exact one gives the same bits with any groups.
    """
    assert slot.config is not None
    parts = all_intervals(place.shape, place.device_mesh, place.placements)
    if any(not intervals for part in parts for intervals in part):
        return f"{len(parts)} ranks share it, and some would hold nothing"
    if slot.config.exact:
        return ""
    first = place.dim() - (2 if slot.storage.transposed else slot.storage.column_dims)
    *_, columns = slot.storage.shape(tuple(place.shape))
    inner = columns // place.shape[first]
    for part in parts:
        borders = [(start * inner, stop * inner) for start, stop in part[first]]
        if reason := why_not_columns(borders, columns, slot.config.group_size):
            return f"{len(parts)} ranks share it, and {reason}"
    return ""


def settle(model: nn.Module) -> None:
    """Freeze compressed shards, and let Linear modules multiply with their own.

    An embedding stays with DTensor, which knows the rows of other ranks.
    """
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if is_shared(parameter) and isinstance(held(parameter), PhiTensor):
                parameter.requires_grad_(False)
                if isinstance(module, nn.Linear):
                    module._hf_quantized_needs_local_tp = True  # type: ignore[assignment]


def _largest(value: float, place: DTensor, device: torch.device) -> float:
    """The largest of all ranks' values."""
    agreed = torch.tensor(value, dtype=torch.float32, device=device)
    for dim in range(place.device_mesh.ndim):
        dist.all_reduce(agreed, dist.ReduceOp.MAX, place.device_mesh.get_group(dim))
    return agreed.item()
