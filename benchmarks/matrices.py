"""The weights of a model as matrices: taken out, compressed by any method, and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Matrix:
    """One weight of a model.

    wide: it is an embedding or an output head, which get at least 4 deviation bits.
    """

    name: str
    parameter: nn.Parameter
    wide: bool

    @property
    def weight(self) -> Tensor:
        """The weight as [rows, reduction]; a convolution's channels and kernel are one."""
        return self.parameter.detach().flatten(1)


def matrices(
    model: nn.Module, *, columns: int = 64, convolutions: bool = False, embeddings: bool = False
) -> list[Matrix]:
    """Weights of Linear layers and 1x1 convolutions with at least `columns` columns.

    Args:
        model: any module; a weight that is used in several places is listed once.
        columns: narrower matrices are left out; 64 is a full group.
        convolutions: take convolutions of every kernel size, depthwise ones excepted.
        embeddings: take embeddings and output heads that are tied to one.
    """
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[int, Matrix] = {}
    for name, module in model.named_modules():
        parameter = getattr(module, "weight", None)
        if not isinstance(parameter, nn.Parameter) or id(parameter) in found:
            continue
        wide = id(parameter) in embedded
        if not (embeddings if wide else _multiplies(module, convolutions)):
            continue
        matrix = Matrix(f"{name}.weight", parameter, wide)
        if matrix.weight.shape[1] >= columns:
            found[id(parameter)] = matrix
    return list(found.values())


def _multiplies(module: nn.Module, convolutions: bool) -> bool:
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.groups != 1:
        return False
    return convolutions or set(module.kernel_size) == {1}


@contextmanager
def replaced(model_matrices: list[Matrix], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other values into the matrices; the originals are back afterwards.

    weights: by matrix name, [rows, reduction]. Raises `KeyError` for a matrix without one.
    """
    originals = {matrix.name: matrix.parameter.detach().clone() for matrix in model_matrices}
    try:
        with torch.no_grad():
            for matrix in model_matrices:
                matrix.parameter.copy_(weights[matrix.name].view(matrix.parameter.shape))
        yield
    finally:
        with torch.no_grad():
            for matrix in model_matrices:
                matrix.parameter.copy_(originals[matrix.name])


def sqnr(weight: Tensor, decoded: Tensor) -> float:
    """Signal to quantization noise in dB; infinite if nothing was lost."""
    noise = (weight.double() - decoded.double()).square().sum()
    return (10 * torch.log10(weight.double().square().sum() / noise)).item()
