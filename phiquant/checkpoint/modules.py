"""Save and load the state of any module, its compressed weights as they are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from phiquant.checkpoint.errors import CheckpointError
from phiquant.checkpoint.files import SUFFIX
from phiquant.checkpoint.places import Place, parameters_without_memory, places_of
from phiquant.checkpoint.reader import TIED, Checkpoint
from phiquant.checkpoint.writer import ShardWriter, move_into
from phiquant.memory import FreedMemory
from phiquant.quantize import leave_nested_path
from phiquant.tensor import PhiTensor


def save(model: nn.Module, path: str | Path, *, max_shard_size: int | str = "5GB") -> None:
    """Write parameters and persistent buffers of a module, compressed or not, as safetensors.

    Shared tensors are written once. What was at ``path`` is replaced when all is written.

    Args:
        model: any module; the class itself is not saved.
        path: a file that ends with ".safetensors", or a folder, which gets model.safetensors, or
            several files and an index.
        max_shard_size: bytes of one file of a folder, as a number or as text like "5GB".

    Raises:
        TypeError: ``model`` is no module, or has extra state that is no tensor.
        ValueError: a tensor is on the meta device; or the size is none.
        OSError: a file cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    path = Path(path)
    tensors, ties = _state(model)
    one_file = path.name.endswith(SUFFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        writer = ShardWriter(Path(folder), 1 << 62 if one_file else max_shard_size)
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        files = writer.finish({TIED: json.dumps(ties)} if ties else None)
        if one_file:
            files[0].replace(path)
        else:
            move_into(path, files)


def load(
    model: nn.Module | Callable[[], nn.Module], path: str | Path, *, tier: str | None = None
) -> nn.Module:
    """Put the tensors of a checkpoint into a module, on mapped memory.

    Planes are not read before they are used. Every parameter and persistent buffer of the module
    must be in the checkpoint, and the other way round; on any error the module is as it was.

    Args:
        model: the module, whose parameters are replaced; or what makes it (a class or a function
            without arguments), called so that its parameters take no memory.
        path: what :func:`save` wrote.
        tier: how deep to read: "index", "deviation", "exact", or None for all that is there.

    Returns:
        The module.

    Raises:
        CheckpointError: a file is damaged, or does not fit the module; the message names both.
        TypeError: ``model`` is neither a module nor makes one.

    >>> import phiquant
    >>> model = nn.Linear(128, 64)
    >>> _ = phiquant.quantize_(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, folder)
    ...     again = load(lambda: nn.Linear(128, 64), folder, tier="index")
    >>> again.weight.bits_per_weight
    4.25
    """
    module = model if isinstance(model, nn.Module) else _made(model)
    checkpoint = Checkpoint(path, tier)
    places = places_of(module)
    _check_names(checkpoint, places)
    found = {name: checkpoint.read(name) for name in checkpoint}
    for name, tensor in found.items():
        _check_fits(checkpoint, name, tensor, places[name])
    found |= {name: found[target] for name, target in checkpoint.tied.items()}
    _assign(found, places)
    leave_nested_path(module)
    FreedMemory().give_back()
    return module


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once by its first name, and the first names for the others."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for name, place in places_of(model).items():
        if place.tensor.is_meta:
            raise ValueError(f"{name}: is on the meta device and holds no values; load it first")
        if first.setdefault(id(place.tensor), name) == name:
            tensors[name] = place.tensor
        else:
            ties[name] = first[id(place.tensor)]
    return tensors, ties


def _made(factory: object) -> nn.Module:
    if not callable(factory):
        raise TypeError(f"model: expected a module or what makes one, got {factory!r}")
    with parameters_without_memory():
        module = factory()
    if not isinstance(module, nn.Module):
        raise TypeError(f"model: expected what makes a module, got a {type(module).__name__}")
    return module


def _check_names(checkpoint: Checkpoint, places: dict[str, Place]) -> None:
    """Every tensor of the module is in the checkpoint under one of its names, and no other is."""
    file, there = checkpoint.files[0], {*checkpoint, *checkpoint.tied}
    if unknown := sorted(there - places.keys()):
        raise CheckpointError(f"{file}: the model has no {_some(unknown)}")
    held: dict[int, str] = {}
    for name in sorted(there & places.keys()):
        other = held.setdefault(id(places[name].tensor), name)
        if checkpoint.tied.get(name, name) != checkpoint.tied.get(other, other):
            raise CheckpointError(f"{file}: {name} and {other} are two, but shared in the model")
    missing = [name for name, place in places.items() if id(place.tensor) not in held]
    if missing:
        raise CheckpointError(f"{file}: lacks {_some(missing)}, which the model has")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _check_fits(checkpoint: Checkpoint, name: str, tensor: Tensor, place: Place) -> None:
    if tensor.shape != place.tensor.shape:
        raise CheckpointError(
            f"{checkpoint.files[0]}: {name}: the model wants shape {tuple(place.tensor.shape)}, "
            f"the file has {tuple(tensor.shape)}"
        )
    if _kind(tensor.dtype) != _kind(place.tensor.dtype):
        raise CheckpointError(
            f"{checkpoint.files[0]}: {name}: the model wants {place.tensor.dtype}, the file has "
            f"{tensor.dtype}"
        )
    if isinstance(tensor, PhiTensor) and place.leaf in place.module._buffers:
        raise CheckpointError(f"{checkpoint.files[0]}: {name}: compressed, but a buffer here")


def _kind(dtype: torch.dtype) -> object:
    """Floating-point types stand for each other, as a model may be made in another one."""
    return "float" if dtype.is_floating_point else dtype


def _assign(found: dict[str, Tensor], places: dict[str, Place]) -> None:
    """Put every tensor in all its places; what was or is shared is shared."""
    values: dict[int, Tensor] = {}
    held: dict[int, Tensor] = {}
    for name, tensor in found.items():
        place = places[name]
        if id(tensor) not in values:
            values[id(tensor)] = _value(tensor, place)
        held[id(place.tensor)] = values[id(tensor)]
    for place in places.values():
        place.put(held[id(place.tensor)])


def _value(tensor: Tensor, place: Place) -> Tensor:
    if place.leaf in place.module._buffers:
        return tensor
    trained = place.tensor.requires_grad and tensor.is_floating_point()
    trained = trained and not isinstance(tensor, PhiTensor)
    parameter = nn.Parameter(tensor, requires_grad=trained)
    if isinstance(tensor, PhiTensor):
        parameter.fqn = tensor.fqn  # type: ignore[attr-defined]
    return parameter
