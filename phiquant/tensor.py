"""PhiTensor: a weight that is held as planes and used as a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import NoReturn

import torch
from torch import Tensor

from phiquant import checksum, encoding
from phiquant.checks import check_importance, check_weight
from phiquant.codec import exponent_for
from phiquant.config import PhiConfig
from phiquant.plane_tensor import PlaneTensor, named
from phiquant.storage import Storage


class PhiTensor(PlaneTensor):
    """A compressed weight ``[..., rows, columns]``; groups run along ``columns``.

    Make one with :meth:`from_hp`. ``stored_dtype`` is the dtype that was encoded and never changes;
    ``dtype`` is what the tensor claims and decodes to. ``transposed`` swaps the last two dimensions
    of the view without touching the planes; ``column_shape`` unfolds the columns. ``fqn``, if set,
    is what messages call it.

    A tensor with a remainder is *exact*: it decodes to the original, bit for bit in
    ``stored_dtype`` (or one that is wider), rounded once in a narrower ``dtype``.

    >>> weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    >>> PhiTensor.from_hp(weight, PhiConfig())
    PhiTensor(shape=(8, 128), planes=index 4 + deviation 4, bits_per_weight=8.25, \
group_size=64, grid='phi', dtype=torch.float32, device='cpu')
    """

    @classmethod
    def from_hp(
        cls,
        weight: Tensor,
        config: PhiConfig | None = None,
        *,
        importance: Tensor | None = None,
        name: str = "weight",
        transposed: bool = False,
        column_dims: int = 1,
        exponent: int | None = None,
    ) -> PhiTensor:
        """Compress a high-precision weight.

        With ``exact=True`` an fp32 weight that holds nothing but bf16 (or fp16) numbers is stored
        as that: a bf16 checkpoint that was loaded as fp32 takes the bits of a bf16 one.
        ``stored_dtype`` is then narrower than ``dtype``.

        Args:
            weight: bf16, fp16 or fp32 ``[..., rows, columns]``, with at least 2 dimensions (but see
                ``transposed`` and ``column_dims``); finite, unless the config is exact.
            config: how; the default is ``PhiConfig()``.
            importance: fp32 ``[columns]``, non-negative weights of the squared error that the
                choice of sign and bend minimises (for example the mean square of the inputs).
            name: what to call the weight in messages.
            transposed: the weight is ``[..., columns, rows]``, as GPT-2's ``[in, out]``.
            column_dims: how many of its last dimensions make up the columns: 3 for the
                ``[out, in, height, width]`` of a ``Conv2d``. The tensor keeps the weight's shape.
            exponent: of the whole weight where this is a part of it; the default is what suits it.

        Raises:
            TypeError: the weight is no plain tensor of a supported floating-point dtype.
            ValueError: the weight is empty, not dense, has fewer than 2 dimensions, is on the meta
                device or holds NaN or infinity without ``exact=True``; the importance has another
                shape or a value that is negative or not finite; or the weight has not more
                dimensions than ``column_dims``, which is 1 for a transposed one.
        """
        config = PhiConfig.checked(config)
        if isinstance(weight, PhiTensor):
            raise TypeError(f"{name}: is compressed already; use .dequantize() to start anew")
        largest = check_weight(weight, name, config.exact)
        exponent = exponent_for(largest) if exponent is None else exponent
        storage = Storage(transposed, column_dims)
        storage.check(weight, name)
        stored = storage.apply(weight.detach())
        stored = encoding.narrowed(stored) if config.exact else stored
        layout = config.layout(stored.shape[-1], exponent, stored.dtype if config.exact else None)
        check_importance(importance, layout.columns)
        planes = encoding.encode(stored, layout, config.fit, importance)
        attributes = asdict(layout) | {"stored_dtype": stored.dtype, "dtype": weight.dtype}
        tensor = cls(
            **named(planes),
            **attributes,
            fit=config.fit,
            transposed=transposed,
            column_shape=storage.column_shape(tuple(weight.shape)),
            checksum_plane=checksum.of_weight(stored) if config.exact else None,
        )
        tensor.fqn = name
        return tensor

    @property
    def config(self) -> PhiConfig:
        """The settings that make a tensor of the same kind.

        A view of a shallower tier remembers a fit that its planes alone do not allow; it gets
        "joint".
        """
        allowed = PhiConfig(
            index_bits=self.index_bits,
            deviation_bits=self.deviation_bits,
            group_size=self.group_size,
            grid=self.grid,
            exact=self.is_exact,
        )
        with suppress(ValueError):
            return replace(allowed, fit=self.fit)
        return allowed

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        """The decoded weight as a plain tensor, in ``output_dtype`` or the tensor's own dtype.

        Raises:
            ValueError: the planes are corrupt or do not belong together; the message names the
                tensor, the plane and, for a remainder, the block.
        """
        try:
            weight = torch.ops.phiquant.decode(
                *self.planes, *self.op_arguments, output_dtype or self.dtype
            )
        except ValueError as error:
            raise self.blame(error) from error
        if self.column_shape:
            return weight.unflatten(-1, self.column_shape)
        return weight.transpose(-2, -1) if self.transposed else weight

    def at(self, deviation_bits: int, activation: str | None = None) -> PhiTensor:
        """The same weight read less deep: a tensor that shares the planes and needs no memory.

        Exceptions (infinities and NaN of an exact weight) stay at every tier.

        Args:
            deviation_bits: 0 reads the index plane only; 4 the first plane of an 8-bit deviation;
                on an exact weight, all of them read the deviation without the remainder.
            activation: "int8" lets products with the index plane alone round each row of their
                input to int8, "bf16" those with deviations to bf16, where a kernel is faster for
                it; None takes inputs as they are.

        Raises:
            ValueError: the planes do not hold a tier of this depth, or ``activation`` is not
                possible with it.
        """
        if activation not in (None, "int8", "bf16"):
            raise ValueError(f"activation must be None, 'int8' or 'bf16', got {activation!r}")
        if activation == "int8" and deviation_bits != 0:
            raise ValueError(
                f"activation='int8' needs deviation_bits=0, got {deviation_bits}: an input that is "
                "rounded to 8 bits wastes what deviations hold"
            )
        if activation == "bf16" and deviation_bits == 0:
            raise ValueError("activation='bf16' needs deviations; indices alone take 'int8'")
        choices = {0, self.deviation_bits} | ({4} if self.deviation_bits == 8 else set())
        if deviation_bits not in choices:
            raise ValueError(
                f"deviation_bits must be one of {sorted(choices)} for a tensor with "
                f"{self.deviation_bits} deviation bits, got {deviation_bits!r}"
            )
        return self._with(
            deviation_bits=deviation_bits,
            activation=activation,
            deviation_plane=self.deviation_plane if deviation_bits else None,
            deviation_low_plane=self.deviation_low_plane if deviation_bits == 8 else None,
            remainder_plane=None,
            offset_plane=None,
            start_plane=None,
            checksum_plane=None,
        )

    def verify(self) -> bool:
        """Whether every bit of the original comes back, by the checksum made when it was encoded.

        Decodes the weight part by part. Planes that are corrupt do not verify, either.

        Raises:
            ValueError: it cannot be told, because there is no remainder or no checksum (a slice
                has none); the message says why.
        """
        why_not = self.why_not_verifiable()
        if why_not:
            raise ValueError(f"{self.describe()}: cannot be verified: {why_not}")
        return not self.mismatch()

    def why_not_verifiable(self) -> str:
        """Why :meth:`verify` cannot tell; empty if it can."""
        if self.remainder_plane is None:
            return (
                "the remainder is not loaded: it was compressed without exact=True, or this is a "
                "view of a shallower tier"
            )
        if self.checksum_plane is None:
            return "this is a slice, and the checksum is that of the whole weight"
        return "it is on the meta device and holds no values" if self.is_meta else ""

    def mismatch(self) -> str:
        """How the decoded bits differ from the original's; empty if they do not."""
        assert self.checksum_plane is not None
        try:
            found = checksum.checksum(self._decoded_parts())
        except ValueError as error:
            return str(error)
        expected = self.checksum_plane.cpu()
        return "" if torch.equal(found, expected) else "the checksum of the decoded bits differs"

    def _decoded_parts(self) -> Iterator[Tensor]:
        """The stored weight in its stored dtype, some rows at a time."""
        rows = self._with(transposed=False, column_shape=()).view(-1, self.columns)
        step = max(1, checksum.part_size(self.device) // self.columns)
        for start in range(0, rows.shape[0], step):
            yield rows[start : start + step].dequantize(self.stored_dtype)

    def requires_grad_(self, requires_grad: bool = True) -> PhiTensor:
        """Refuse gradients: a compressed weight cannot be trained."""
        if requires_grad:
            raise RuntimeError(
                f"{self.describe()}: a compressed weight has no gradient and cannot be trained; "
                "train an adapter on top of it, or use .dequantize() for a plain weight. To put it "
                "into a parameter: nn.Parameter(weight, requires_grad=False); into a model by "
                "load_state_dict(assign=True): model.requires_grad_(False) first"
            )
        return self

    def share_memory_(self) -> NoReturn:
        raise RuntimeError(
            f"{self.describe()}: share_memory_() is not supported for a compressed weight; "
            "send the model to the other process, or load it there"
        )

    def __repr__(self, *, tensor_contents: object = None) -> str:
        planes = f"index {self.index_bits}"
        planes += f" + deviation {self.deviation_bits}" if self.deviation_bits else ""
        planes += " + remainder" if self.is_exact else ""
        stored = "" if self.stored_dtype == self.dtype else f"stored_dtype={self.stored_dtype}, "
        return (
            f"PhiTensor(shape={tuple(self.shape)}, planes={planes}, "
            f"bits_per_weight={self.bits_per_weight:.2f}, "
            f"group_size={self.group_size}, grid={self.grid!r}, dtype={self.dtype}, "
            f"{stored}device='{self.device}')"
        )


torch.serialization.add_safe_globals([PhiTensor])
