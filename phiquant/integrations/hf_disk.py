"""The part of a device_map that says "disk": weights in mapped files, which stay on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from phiquant.offload import mapped, offload_

DISK = "disk"


class DiskWeights:
    """Which weights of a model are to be on disk, and where.

    transformers and accelerate know only plain values on disk. So that planes stay planes, they
    are told that these weights are on the CPU, where mapped files take no memory of their own.

    Args:
        folder: for the files.
        are_mapped: the weights are read from a compressed checkpoint, whose planes are mapped from
            its own files already; a folder is not needed.
    """

    def __init__(self, folder: str | None, *, are_mapped: bool = False) -> None:
        self.folder, self.are_mapped = folder, are_mapped
        self._wanted: dict[str, Any] = {}

    def take_from(self, device_map: Mapping[str, Any]) -> dict[str, Any]:
        """``device_map`` with "cpu" for "disk", which is remembered.

        Raises:
            ValueError: something is to be on disk, and no folder is known.
        """
        names = [name for name, device in device_map.items() if device == DISK]
        if names and self.folder is None and not self.are_mapped:
            raise ValueError(
                f"device_map: {names[:4]} would be offloaded to disk; say where with "
                "PhiQuantConfig(offload_folder=...), because from_pretrained keeps its own "
                "offload_folder to itself; or use a larger max_memory"
            )
        if names:
            self._wanted = dict(device_map)
        return {name: "cpu" if device == DISK else device for name, device in device_map.items()}

    def has(self, name: str) -> bool:
        """Whether the parameter of this name is to be on disk; the longest entry decides."""
        inside = [at for at in self._wanted if at in ("", name) or name.startswith(f"{at}.")]
        return bool(inside) and self._wanted[max(inside, key=len)] == DISK

    def put(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """The parameter, mapped from a file if it is to be on disk."""
        if self.folder is None or not self.has(name):
            return parameter
        return mapped(parameter, self.folder, name)

    def put_rest(self, model: nn.Module, done: set[str]) -> None:
        """Map what else is to be on disk: weights that were left alone or compressed late."""
        if self.folder is not None and self._wanted:
            offload_(model, self.folder, lambda name: name not in done and self.has(name))
