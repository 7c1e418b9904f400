"""The checksum of an exact weight: 16 bytes that tell whether every bit came back."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from queue import SimpleQueue

import torch
from torch import Tensor

SIZE = 16  # bytes
_THREADS = 16
PART = 1 << 20  # weights that are looked at together: of these, a CPU's caches hold much
PART_ON_A_GPU = 1 << 25  # where each part costs a thousand times what it takes to start a kernel


def part_size(device: torch.device) -> int:
    """How many weights on ``device`` are looked at together."""
    return PART if device.type == "cpu" else PART_ON_A_GPU


def checksum(parts: Iterable[Tensor]) -> Tensor:
    """BLAKE2b, cut to 16 bytes, of the weights' bits one after the other.

    Args:
        parts: plain tensors of the stored dtype, in row-major order; each is read as it comes, so
            that no more than one has to be in memory.

    Returns:
        uint8 ``[16]`` on the CPU; the same on every machine: bits are taken in little-endian order.
    """
    state = hashlib.blake2b(digest_size=SIZE)
    for part in parts:
        octets = part.detach().cpu().contiguous().view(torch.uint8)
        if sys.byteorder == "big":
            octets = octets.view(-1, part.itemsize).flip(-1).contiguous()
        state.update((ctypes.c_ubyte * octets.numel()).from_address(octets.data_ptr()))
    return torch.tensor(list(state.digest()), dtype=torch.uint8)


def of_weight(weight: Tensor) -> Tensor:
    """The checksum of a contiguous weight, uint8 ``[16]`` on its device."""
    hashing = _hashing.get()
    if hashing is not None and weight.is_cuda:
        return hashing.add(weight)
    return checksum(weight.detach().view(-1).split(PART)).to(weight.device)


class Hashing:
    """Checksums that threads make, for a device that encodes weights faster than one of them.

    Bits are copied to memory of the host first, so that a weight may be freed: that of as many
    weights as there are threads.
    """

    def __init__(self, threads: int | None = None) -> None:
        count = threads or min(_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(count, "phiquant-checksum")
        self._rooms: SimpleQueue[Tensor] = SimpleQueue()
        self._made: list[tuple[Tensor, Future[Tensor]]] = []
        for _ in range(count):
            self._rooms.put(torch.empty(0, dtype=torch.uint8))

    def add(self, weight: Tensor) -> Tensor:
        """The checksum of a contiguous weight, which :meth:`finish` fills in."""
        octets = weight.detach().view(-1).view(torch.uint8)
        room = self._rooms.get()
        if room.numel() < octets.numel():
            room = torch.empty(octets.numel(), dtype=torch.uint8)
        room[: octets.numel()].copy_(octets)
        plane = octets.new_zeros(SIZE)
        future = self._threads.submit(self._hash, room, octets.numel(), weight.dtype)
        self._made.append((plane, future))
        return plane

    def _hash(self, room: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        try:
            return checksum([room[:size].view(dtype)])
        finally:
            self._rooms.put(room)

    def finish(self) -> None:
        for plane, future in self._made:
            plane.copy_(future.result())
        self._threads.shutdown()


_hashing: ContextVar[Hashing | None] = ContextVar("phiquant_hashing", default=None)


@contextmanager
def in_background() -> Iterator[None]:
    """Within, :func:`of_weight` of a weight on a GPU is filled in when this ends, and not before.

    One thread takes a hundred times as long for a checksum as a GPU for the planes.
    """
    hashing = Hashing()
    before = _hashing.set(hashing)
    try:
        yield
    finally:
        _hashing.reset(before)
        hashing.finish()
