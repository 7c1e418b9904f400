"""A compressed weight as one row of bytes, which ranks send each other.

The planes of an exact weight are as long as its values make them, so shards differ in length from
rank to rank; bytes can be padded to the longest. In front is a header: int64, the elements of
every plane (-1: absent), the exponent, and which dtype was stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phiquant import codec
from phiquant.codec import DTYPES, Planes
from phiquant.sharding.anew import encode_anew
from phiquant.tensor import PhiTensor

# The widest elements come first, so that every plane begins where its elements may.
_DTYPES = {
    "start_plane": torch.int64,
    "exception_plane": torch.int64,
    "scale_plane": torch.int16,
    "offset_plane": torch.int16,
    "index_plane": torch.uint8,
    "deviation_plane": torch.uint8,
    "deviation_low_plane": torch.uint8,
    "remainder_plane": torch.uint8,
    "checksum_plane": torch.uint8,
}
_FLAT = {
    "start_plane": (-1,),
    "exception_plane": (-1, 2),
    "remainder_plane": (-1,),
    "checksum_plane": (-1,),
}
HEADER = 8 * (len(_DTYPES) + 2)  # bytes
UNIT = 8  # bytes; lengths are multiples


def header(tensor: PhiTensor) -> Tensor:
    """uint8 ``[HEADER]``."""
    planes = [getattr(tensor, name) for name in _DTYPES]
    sizes = [-1 if plane is None else plane.numel() for plane in planes]
    said = [*sizes, tensor.exponent, DTYPES.index(tensor.stored_dtype)]
    return torch.tensor(said, device=tensor.index_plane.device).view(torch.uint8)


def exponents(headers: Tensor) -> list[int]:
    """The exponents in headers ``[ranks, HEADER]``."""
    return headers.view(torch.int64)[:, len(_DTYPES)].tolist()


def length(tensor: PhiTensor) -> int:
    """Bytes of :func:`pack`."""
    return HEADER + tensor.stored_bytes + -tensor.stored_bytes % UNIT


def pack(tensor: PhiTensor, padded: int = 0) -> Tensor:
    """uint8 ``[n]``: all of a weight but its shape and layout, ``padded`` to so many bytes."""
    planes = [getattr(tensor, name) for name in _DTYPES]
    octets = [_octets(plane) for plane in planes if plane is not None]
    missing = max(padded, length(tensor)) - HEADER - tensor.stored_bytes
    return torch.cat([header(tensor), *octets, octets[0].new_zeros(missing)])


def _octets(plane: Tensor) -> Tensor:
    # A view of a single element may keep any stride, which viewing it as bytes refuses.
    return plane.contiguous().as_strided((plane.numel(),), (1,)).view(torch.uint8)


def unpack(octets: Tensor, like: PhiTensor, rows: int) -> PhiTensor:
    """The weight that was packed, its planes copies.

    Args:
        octets: uint8 ``[n]`` from :func:`pack`.
        like: a weight of the same layout, whose shape it has but for the first dimension.
        rows: its first dimension.
    """
    octets = octets.clone()  # planes of wide elements have to begin at their multiples
    said = octets[:HEADER].view(torch.int64).tolist()
    *sizes, exponent, stored = said
    changes: dict[str, Tensor | None] = {}
    place = HEADER
    shaped = (rows, *like.scale_plane.shape[1:-1])
    for (name, dtype), size in zip(_DTYPES.items(), sizes, strict=True):
        changes[name] = None
        if size >= 0:
            part = octets[place : place + size * dtype.itemsize].view(dtype)
            last = size // max(1, torch.Size(shaped).numel())
            changes[name] = part.view(_FLAT.get(name, (*shaped, last)))
            place += part.nbytes
    return like._with(**changes, exponent=exponent, stored_dtype=DTYPES[stored])


def joined(parts: list[PhiTensor]) -> PhiTensor:
    """Shards of rows as one weight.

    Raises:
        ValueError: their scales cannot be said with one exponent.
    """
    kept = [part for part in parts if part.numel()] or parts[:1]
    if kept[0].is_exact and len({part.stored_dtype for part in kept}) > 1:
        wide = torch.cat([part._with(transposed=False).dequantize(torch.float32) for part in kept])
        anew = encode_anew(wide, kept[0]._with(transposed=False))
        return anew._with(transposed=kept[0].transposed, checksum_plane=None)
    exponent = max(part.exponent for part in kept)
    planes = [codec.shift_exponent(part.planes, exponent - part.exponent) for part in kept]
    fitting: list[Planes] = [part for part in planes if part is not None]
    if len(fitting) < len(planes):
        raise ValueError(
            f"{kept[0].describe()}: the scales of its shards have no common exponent, got "
            f"{sorted({part.exponent for part in kept})}; compress the whole weight, then shard it"
        )
    whole = codec.join(fitting, [part.columns for part in kept], 0)
    return kept[0].on(whole, exponent=exponent, checksum_plane=None)
