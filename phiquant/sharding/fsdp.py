"""FSDP2: the planes of a compressed parameter are gathered before its module runs.

``torch.distributed.fsdp.fully_shard`` calls the two hooks; parameters are sharded along their
first dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn

from phiquant.codec import DTYPES
from phiquant.plane_tensor import named
from phiquant.sharding import wire
from phiquant.tensor import PhiTensor


class Sent(NamedTuple):
    """How to read what was gathered.

    ranks: how many sent.
    names: of the planes, each a tensor of its own after the header; empty if all are packed.
    rows: of all ranks together.
    """

    ranks: int
    names: tuple[str, ...]
    rows: int


def fsdp_pre_all_gather(
    self: PhiTensor,
    mesh: Any,
    outer_size: torch.Size,
    outer_stride: tuple[int, ...],
    module: nn.Module,
    mp_policy: Any,
) -> tuple[tuple[Tensor, ...], Sent]:
    """What this rank sends: its planes, or all of them packed where ranks have other lengths.

    That is so for exact weights, for which the longest is agreed on first, and where the ranks do
    not divide the rows: FSDP2 then takes tensors of the parameter's own shape only, which may send
    up to twice the bytes.
    """
    if tuple(self.shape[1:]) != tuple(outer_size[1:]):
        raise ValueError(
            f"{self.describe()}: FSDP can shard a compressed weight along its first dimension "
            f"only, got shards of shape {tuple(self.shape)} of {tuple(outer_size)}"
        )
    ranks, rows = mesh.size(), outer_size[0]
    uneven = rows % ranks != 0
    if not uneven and not self.is_exact and self.exception_plane is None:
        planes = {n: p for n, p in named(self.planes).items() if p is not None}
        sent = (wire.header(self), *(plane.contiguous() for plane in planes.values()))
        return sent, Sent(ranks, tuple(planes), rows)
    longest = _longest(self, mesh.get_group())
    if not uneven:
        return (wire.pack(self, longest),), Sent(ranks, (), rows)
    shape = torch.Size((-(-rows // ranks), *outer_size[1:]))
    count = -(-longest // shape.numel())
    packed = wire.pack(self, count * shape.numel())
    return packed.view(count, *shape).unbind(0), Sent(ranks, (), rows)


def _longest(tensor: PhiTensor, group: Any) -> int:
    """Bytes of the longest shard. What is agreed on once would be wrong after a reload."""
    size = torch.tensor([wire.length(tensor)], device=tensor.index_plane.device)
    torch.distributed.all_reduce(size, torch.distributed.ReduceOp.MAX, group)
    return int(size)


def fsdp_post_all_gather(
    self: PhiTensor,
    all_gather_outputs: Sequence[Tensor],
    metadata: Sent,
    param_dtype: torch.dtype,
    *,
    out: PhiTensor | None = None,
) -> tuple[PhiTensor, tuple[Tensor, ...]] | None:
    """The whole weight, and the tensors that FSDP may free with it; or new planes for ``out``.

    Raises:
        ValueError: the scales of the shards have no common exponent.
    """
    dtype = param_dtype if param_dtype in DTYPES else self.dtype
    if metadata.names:
        return _from_planes(self, all_gather_outputs, metadata, dtype, out)
    octets = [part.reshape(metadata.ranks, -1) for part in all_gather_outputs]
    most = -(-metadata.rows // metadata.ranks)
    parts, left = [], metadata.rows
    for packed in torch.cat(octets, 1):
        parts.append(wire.unpack(packed, self, min(most, left)))
        left -= parts[-1].scale_plane.shape[0]
    whole = wire.joined(parts)._with(dtype=dtype)
    if out is None:
        return whole, tuple(plane for plane in whole.planes if plane is not None)
    _refill(out, whole)
    return None


def _from_planes(
    self: PhiTensor, outputs: Sequence[Tensor], sent: Sent, dtype: torch.dtype, out: Any
) -> tuple[PhiTensor, tuple[Tensor, ...]] | None:
    """The planes are the gathered memory itself, which ``out`` sees filled again."""
    said, *planes = outputs
    # On a GPU this would wait for the transfer at every layer, so it is asked the first time.
    if out is None or said.device.type == "cpu":
        exponents = set(wire.exponents(said.view(sent.ranks, -1)))
        if exponents != {self.exponent}:
            raise ValueError(
                f"{self.describe()}: its shards have different exponents, {sorted(exponents)}; "
                "compress the whole weight, then shard it"
            )
    if out is not None:
        return None
    changes: dict[str, Any] = dict(zip(sent.names, planes, strict=True))
    return self._with(**changes, dtype=dtype, checksum_plane=None), ()


def _refill(out: PhiTensor, whole: PhiTensor) -> None:
    """New values for planes whose memory FSDP had freed; other planes after a reload."""
    for name in (*out.tensor_data_names, *out.optional_tensor_data_names):
        old, new = getattr(out, name), getattr(whole, name)
        if old is None or new is None or old.shape != new.shape:
            setattr(out, name, new)
        else:
            with torch.autograd._unsafe_preserve_version_counter(old):
                old.copy_(new)
    out.exponent, out.stored_dtype = whole.exponent, whole.stored_dtype


PhiTensor.fsdp_pre_all_gather = fsdp_pre_all_gather
PhiTensor.fsdp_post_all_gather = fsdp_post_all_gather
