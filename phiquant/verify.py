"""Hold a compressed model against the checksums of its original weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from phiquant.tensor import PhiTensor


@dataclass
class Verification:
    """The result of :func:`phiquant.verify`; print it.

    verified: names of the weights every bit of which came back.
    failed: names of those that differ from the original, with what was found.
    unverifiable: names of those that cannot be told, with the reason.
    """

    verified: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    unverifiable: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every compressed weight was verified."""
        return not self.failed and not self.unverifiable

    def __str__(self) -> str:
        summary = (
            f"{len(self.verified)} weights verified bit for bit, {len(self.failed)} failed, "
            f"{len(self.unverifiable)} cannot be verified"
        )
        failed = [f"  {name}  FAILED: {why}" for name, why in self.failed.items()]
        unknown = [
            f"  {name}  cannot be verified: {why}" for name, why in self.unverifiable.items()
        ]
        return "\n".join([summary, *failed, *unknown])


def verify(model: nn.Module) -> Verification:
    """Decode every compressed weight, and hold its bits against the checksum of its original.

    A shared weight is verified once, under its first name. Plain parameters are not listed.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no compressed parameter.

    >>> from phiquant import PhiConfig, quantize_
    >>> model = nn.Linear(128, 64)
    >>> _ = quantize_(model, PhiConfig(exact=True))
    >>> print(verify(model))
    1 weights verified bit for bit, 0 failed, 0 cannot be verified
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    result = Verification()
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, PhiTensor):
            continue
        if why_not := parameter.why_not_verifiable():
            result.unverifiable[name] = why_not
        elif found := parameter.mismatch():
            result.failed[name] = found
        else:
            result.verified.append(name)
    if not (result.verified or result.failed or result.unverifiable):
        raise ValueError("model: no parameter is compressed; compress it with phiquant.quantize_")
    return result
