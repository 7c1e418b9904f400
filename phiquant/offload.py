"""Weights on disk: planes in files that are mapped, so that the system may drop them from memory.

The files are this process's own and no checkpoint; `phiquant.save` writes those.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from phiquant.memory import FreedMemory
from phiquant.owners import owned_parameters
from phiquant.tensor import PhiTensor

Model = TypeVar("Model", bound=nn.Module)
SMALLEST = 16384  # bytes of a weight from which a file of its own is worth it
_VALUE = "value"


def offload_(
    model: Model, folder: str | os.PathLike[str], filter_fn: Callable[[str], bool] | None = None
) -> Model:
    """Write the weights of ``model`` to files in ``folder`` and use them from there; returns it.

    Every parameter over 16 KiB, compressed or not, becomes a mapped file on the CPU: it is read
    when it is used, and the system drops it from memory when that is short. Results are the same,
    bit for bit, and shared weights stay shared. A write to a mapped weight stays in memory.

    With accelerate this takes the place of its offload to disk, which knows plain values only:
    offload here, then give ``"cpu"`` where its ``device_map`` would say ``"disk"``.

    Args:
        folder: made if it is not there. The model needs the files as long as it lives; files of
            an earlier call are replaced, and the models that use those keep them.
        filter_fn: ``name -> bool`` of a parameter; False leaves it in memory.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a weight is on the meta device and holds no values. Nothing is changed.
        OSError: a file cannot be written; this weight and those after it are unchanged.
    """
    places = [
        place
        for place in owned_parameters(model)
        if not is_lazy(place.parameter)
        and _size(place.parameter) >= SMALLEST
        and (filter_fn is None or filter_fn(place.name))
    ]
    for place in places:
        if place.parameter.is_meta:
            raise ValueError(
                f"{place.name}: is on the meta device and holds no values to write to {folder}"
            )
    freed = FreedMemory()
    for place in places:
        size = _size(place.parameter)
        place.put(mapped(place.parameter, folder, place.name))
        freed.add(size)
    freed.give_back()
    return model


def mapped(parameter: nn.Parameter, folder: str | os.PathLike[str], name: str) -> nn.Parameter:
    """The same parameter on the CPU, on a file in ``folder`` that is written and mapped.

    Raises:
        OSError: the file cannot be written.
    """
    file = Path(folder) / f"{quote(name, safe='')}.safetensors"
    planes = _planes(parameter)
    _write({key: plane.detach().cpu().contiguous() for key, plane in planes.items()}, file)
    with safe_open(file, framework="pt") as opened:
        planes = {key: opened.get_tensor(key) for key in planes}
    if isinstance(parameter, PhiTensor):
        return nn.Parameter(parameter._with(**planes), requires_grad=False)
    return nn.Parameter(planes[_VALUE], parameter.requires_grad)


def _write(planes: dict[str, Tensor], file: Path) -> None:
    """Appears whole or not at all; a file that is mapped already is replaced, not changed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file(planes, part)
        part.replace(file)
    except Exception as error:
        raise OSError(f"{file}: cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _planes(tensor: Tensor) -> dict[str, Tensor]:
    if not isinstance(tensor, PhiTensor):
        return {_VALUE: tensor}
    names = (*tensor.tensor_data_names, *tensor.optional_tensor_data_names)
    planes = {name: getattr(tensor, name) for name in names}
    return {name: plane for name, plane in planes.items() if plane is not None}


def _size(tensor: Tensor) -> int:
    return tensor.stored_bytes if isinstance(tensor, PhiTensor) else tensor.nbytes
