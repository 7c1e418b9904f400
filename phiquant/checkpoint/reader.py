"""Read a checkpoint: weights on mapped memory, checked before anything is computed from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from phiquant.checkpoint.contents import check_contents
from phiquant.checkpoint.errors import CheckpointError
from phiquant.checkpoint.files import Stored, check_index, each_once, find_files, open_files
from phiquant.checkpoint.header import VERSION, Header
from phiquant.checkpoint.names import HEADER, PLANES, split_key
from phiquant.codec import Layout
from phiquant.codec.layout import check_choice
from phiquant.precision import TIERS
from phiquant.tensor import PhiTensor

# Keys of the files' metadata: version, number of compressed weights, names of shared tensors.
FORMAT, WEIGHTS, TIED = "phiquant.format", "phiquant.weights", "phiquant.tied"
_LOSSY = ("index", "scale", "deviation", "deviation_low", "exceptions")
_READ = {"index": ("index", "scale", "exceptions"), "deviation": _LOSSY}


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, compressed ones as :class:`phiquant.PhiTensor`.

    Tensors lie on mapped memory: a file is read where, and when, they are used, so
    ``checkpoint["layer.weight"][10:12].dequantize()`` reads two rows. A file that is overwritten
    while it is mapped changes them (phiquant itself replaces files and never overwrites one).

    Opening checks what the headers say: every attribute, and dtype and shape of every plane.
    Kernels check the contents that they read; :meth:`read` checks the small planes as a whole.

    Args:
        path: a safetensors file, an index, a folder with either, or several files.
        tier: how deep to read: "index", "deviation", "exact", or None for all that is there.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a file is not what it says it is.
        ValueError: the tier is unknown.
    """

    def __init__(self, path: str | Path | Sequence[str | Path], tier: str | None = None) -> None:
        check_choice("tier", tier, (*TIERS, None))
        several = not isinstance(path, str | Path)
        files = [Path(file) for file in path] if several else find_files(path)  # type: ignore[union-attr, arg-type]
        self.files, self.tier = files, tier
        self._stored, self.metadata = open_files(files)
        self._check_version()
        if not several:
            check_index(path, self._stored)  # type: ignore[arg-type]
        self.headers: dict[str, Header] = {}
        self._planes = self._grouped()
        for name in self._planes:
            self.headers[name] = self._header(name)
        self._check_count()
        self.tied = self._ties()

    def _grouped(self) -> dict[str, dict[str, Stored]]:
        """The planes of every compressed weight; what is left in ``_stored`` are plain tensors."""
        planes: dict[str, dict[str, Stored]] = {}
        for key, stored in self._stored.items():
            if split := split_key(key):
                planes.setdefault(split[0], {})[split[1]] = stored
        for name, found in list(planes.items()):
            if HEADER not in found and not {"index", "scale"} <= found.keys():
                del planes[name]  # only looks like it: a plain tensor of such a name
        for name, found in planes.items():
            for stored in found.values():
                del self._stored[stored.key]
            if name in self._stored:
                file = self._stored[name].file
                raise CheckpointError(f"{file}: {name}: is there compressed and plain as well")
        return planes

    def _header(self, name: str) -> Header:
        """The header of a weight, once its planes are found to be those that it describes."""
        found = self._planes[name]
        file = next(iter(found.values())).file
        if HEADER not in found:
            raise CheckpointError(f"{file}: {name}: its header is missing")
        try:
            header = Header.from_tensor(found[HEADER].map())
        except ValueError as error:
            raise CheckpointError(f"{file}: {name}: header: {error}") from error
        expected = header.planes
        if more := sorted(found.keys() - expected.keys() - {HEADER}):
            raise CheckpointError(f"{found[more[0]].file}: {name}: has planes too many: {more}")
        for plane, (dtype, shape) in expected.items():
            stored = found.get(plane)
            if stored is None:
                raise CheckpointError(f"{file}: {name}: the plane {plane!r} is missing")
            if stored.dtype != dtype or stored.shape != shape:
                got = f"{stored.dtype or 'another dtype'} of shape {stored.shape}"
                wanted = f"{dtype} of shape {shape}"
                raise CheckpointError(
                    f"{stored.file}: {name}: plane {plane!r}: expected {wanted}, got {got}"
                )
        self._check_tier(file, name, header)
        return header

    def _check_tier(self, file: Path, name: str, header: Header) -> None:
        if self.tier == "exact" and not header.remainder:
            raise CheckpointError(
                f"{file}: {name}: has no remainder, so it cannot be read at tier 'exact'"
            )

    def _check_count(self) -> None:
        """A weight that is gone with all its planes is missed by nothing else."""
        said, count = self.metadata.get(WEIGHTS), len(self._planes)
        if said is not None and said != str(count):
            raise CheckpointError(
                f"{self.files[0]}: {WEIGHTS}: expected {said} compressed weights, found {count}"
            )

    def _check_version(self) -> None:
        said = self.metadata.get(FORMAT)
        if said is not None and said != str(VERSION):
            raise CheckpointError(
                f"{self.files[0]}: {FORMAT}: must be {VERSION}, got {said!r}; a newer phiquant may "
                "read it"
            )

    def _ties(self) -> dict[str, str]:
        """For further names of shared tensors the name under which each is stored."""
        try:
            ties = json.loads(self.metadata.get(TIED, "{}"), object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.files[0]}: {TIED}: is not JSON: {error}") from error
        if not isinstance(ties, dict):
            raise CheckpointError(f"{self.files[0]}: {TIED}: expected names, got {ties!r}")
        for name, target in ties.items():
            if name in self or not isinstance(target, str) or target not in self:
                raise CheckpointError(
                    f"{self.files[0]}: {TIED}: {name!r} cannot be tied to {target!r}: expected the "
                    "name of a stored tensor for one that is not"
                )
        return ties

    def __iter__(self) -> Iterator[str]:
        yield from self._planes
        yield from self._stored

    def __len__(self) -> int:
        return len(self._planes) + len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._planes or name in self._stored

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of this name, which may be a further name of a shared one."""
        name = self.tied.get(name, name)
        if name in self._stored:
            return self._stored[name].map()
        if name not in self._planes:
            raise KeyError(f"{name!r} is not in {self.files[0]}; it has {list(self)[:4]} ...")
        return self._tensor(name)

    def read(self, name: str) -> Tensor:
        """The tensor of this name, its small planes looked through.

        Raises:
            KeyError: there is none.
            CheckpointError: a scale, an exception or a start of a block is not what it may be.
        """
        tensor = self[name]
        if isinstance(tensor, PhiTensor):
            layout = Layout(*tensor.op_arguments)
            try:
                check_contents(tensor.planes, layout, tensor.numel())
            except ValueError as error:
                file = self._planes[name][HEADER].file
                raise CheckpointError(f"{file}: {name}: {error}") from error
        return tensor

    def stored_bytes(self, name: str) -> int:
        """Bytes in the file of a tensor at the tier that is read, the header left out."""
        if name in self._stored:
            tensor = self._stored[name].map()
            return tensor.numel() * tensor.itemsize
        sizes = self.headers[name].planes
        return sum(
            torch.Size(sizes[plane][1]).numel() * sizes[plane][0].itemsize
            for plane in self._read(self.headers[name])
        )

    def _read(self, header: Header) -> list[str]:
        """The planes that are read at this tier."""
        wanted = _READ.get(self.tier or "exact", tuple(PLANES))
        return [plane for plane in header.planes if plane in wanted]

    def _tensor(self, name: str) -> PhiTensor:
        header, found = self.headers[name], self._planes[name]
        attributes = header.attributes
        if self.tier == "index":
            attributes["deviation_bits"] = 0
        attributes |= {PLANES[plane]: found[plane].map() for plane in self._read(header)}
        tensor = PhiTensor(**attributes)
        tensor.fqn = name
        return tensor


def open_checkpoint(path: str | Path, tier: str | None = None) -> Checkpoint:
    """Open a checkpoint without reading it; see :class:`Checkpoint` for arguments and errors.

    >>> import tempfile, torch, phiquant
    >>> model = torch.nn.Linear(128, 64)
    >>> _ = phiquant.quantize_(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     phiquant.save(model, folder)
    ...     weight = phiquant.open(folder)["weight"]
    ...     weight[3:5].dequantize().shape
    torch.Size([2, 128])
    """
    return Checkpoint(path, tier)
