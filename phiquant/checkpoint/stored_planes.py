"""A compressed weight as the tensors that a file holds."""

from __future__ import annotations

import torch
from torch import Tensor

from phiquant.checkpoint.header import Header
from phiquant.checkpoint.names import HEADER, PLANES, key_of
from phiquant.tensor import PhiTensor


def planes_of(name: str, tensor: PhiTensor) -> dict[str, Tensor]:
    """Header and planes of a weight by their keys, on the CPU, in the layout of files.

    Raises:
        ValueError: the tensor is empty or on the meta device, or its planes are corrupt.
    """
    if tensor.numel() == 0:
        raise ValueError(f"{name}: an empty slice of a compressed weight cannot be stored")
    if tensor.is_meta:
        raise ValueError(f"{name}: is on the meta device and holds no values; load it first")
    tensor = _in_order(tensor)
    planes = {plane: getattr(tensor, attribute) for plane, attribute in PLANES.items()}
    stored = {HEADER: Header.of(tensor).to_tensor()}
    stored |= {plane: data for plane, data in planes.items() if data is not None}
    return {key_of(name, plane): data.detach().cpu().contiguous() for plane, data in stored.items()}


def _in_order(tensor: PhiTensor) -> PhiTensor:
    """The same weight with a payload of its own, where this one's blocks lie in a larger one's."""
    if tensor.remainder_plane is None or tensor.start_plane is None:
        return tensor
    if tuple(tensor.start_plane.shape) == Header.of(tensor).planes["starts"][1]:
        return tensor
    weight = tensor._with(transposed=False, column_shape=()).dequantize(tensor.stored_dtype)
    lossy = (plane if plane is None else plane.contiguous() for plane in tensor.planes[:4])
    rest = torch.ops.phiquant.encode_remainder(weight, *lossy, *tensor.op_arguments[1:])
    remainder, offsets, starts, exceptions = rest
    return tensor._with(
        remainder_plane=remainder,
        offset_plane=offsets,
        start_plane=starts,
        exception_plane=exceptions if exceptions.shape[0] else None,
    )
