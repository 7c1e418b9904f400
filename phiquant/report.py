"""What a compression did to every parameter of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

_SMALL = 16384  # bytes: a shorter vector is not worth a line of its own


@dataclass(frozen=True)
class Compressed:
    """One compressed parameter.

    names: every place of the model that holds it; more than one if it is shared.
    relative_error: ``|decoded - original| / |original|`` (Frobenius), None in a preview; 0.0 for
        an exact weight, every bit of which was compared.
    estimated: whether ``stored_bytes`` is an estimate: a remainder's size depends on the weights.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    original_bytes: int
    stored_bytes: int
    relative_error: float | None = None
    estimated: bool = False

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return self.stored_bytes * 8 / self.weights


@dataclass(frozen=True)
class Skipped:
    """One parameter that was left alone, and why."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    bytes: int
    reason: str


@dataclass
class Report:
    """The result of :func:`phiquant.quantize_` and :func:`phiquant.preview`; print it."""

    compressed: list[Compressed] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def original_bytes(self) -> int:
        """Bytes of all parameters before, shared ones counted once."""
        return sum(c.original_bytes for c in self.compressed) + sum(s.bytes for s in self.skipped)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parameters after, shared ones counted once."""
        return sum(c.stored_bytes for c in self.compressed) + sum(s.bytes for s in self.skipped)

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight over the compressed parameters; 0 if there are none."""
        weights = sum(c.weights for c in self.compressed)
        return sum(c.stored_bytes for c in self.compressed) * 8 / weights if weights else 0.0

    @property
    def relative_error(self) -> float | None:
        """The mean over the compressed parameters, each counting with its number of weights."""
        errors = [c.relative_error for c in self.compressed]
        weights = sum(c.weights for c in self.compressed)
        if not weights or None in errors:
            return None
        return sum(c.weights * (c.relative_error or 0.0) for c in self.compressed) / weights

    @property
    def summary(self) -> str:
        """One line: how many parameters, and what it saves."""
        about = _about(any(c.estimated for c in self.compressed))
        return (
            f"{len(self.compressed)} parameters compressed to {about}{self.bits_per_weight:.2f} "
            f"bits a weight, {len(self.skipped)} left alone: {_size(self.original_bytes)} -> "
            f"{about}{_size(self.stored_bytes)}"
        )

    def __str__(self) -> str:
        return "\n".join([self.summary, *self._lines()])

    def _lines(self) -> Iterator[str]:
        for c in self.compressed:
            error = "" if c.relative_error is None else f"  error {c.relative_error:.2e}"
            bits = f"{_about(c.estimated)}{c.bits_per_weight:.2f} bits"
            yield f"  {' = '.join(c.names)}  {_shape(c.shape)}  {bits}{error}"
        small = [s for s in self.skipped if len(s.shape) < 2 and 0 < s.bytes < _SMALL]
        for s in self.skipped:
            if s not in small:
                yield f"  {' = '.join(s.names)}  {_shape(s.shape)}  left alone: {s.reason}"
        if small:
            total = sum(s.bytes for s in small)
            yield f"  {len(small)} vectors and scalars left alone, {_size(total)} together"


def _about(estimated: bool) -> str:
    return "about " if estimated else ""


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(extent) for extent in shape) or "scalar"
