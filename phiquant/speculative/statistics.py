"""What a generation did: tokens drafted and accepted, passes, planes and bytes read, seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from phiquant.tensor import PhiTensor


@dataclass(frozen=True)
class Reading:
    """What one pass over a model reads: bytes of weights, and the mean number of planes of one.

    Planes are index, deviation and remainder, of which scale words and offsets are parts; bytes
    count weights that are not compressed, too. Of a table of embeddings a pass reads rows, which
    are not counted.
    """

    bytes: float
    planes: float

    @classmethod
    def of(cls, model: nn.Module) -> Reading:
        read = planes = weights = 0.0
        for module in model.modules():
            for parameter in (
                () if isinstance(module, nn.Embedding) else module._parameters.values()
            ):
                if isinstance(parameter, PhiTensor):
                    depth = 1 + (parameter.deviation_bits > 0) + parameter.is_exact
                    planes += depth * parameter.numel()
                    weights += parameter.numel()
                    read += parameter.bits_per_weight * parameter.numel() / 8
                elif parameter is not None:
                    read += parameter.nbytes
        return cls(read, planes / weights if weights else 0.0)


@dataclass(frozen=True)
class Round:
    """One verification: tokens that were drafted, accepted and put out, over all sequences.

    ties: passes of one token that settled near ties. deep: passes of the model that verified.
    repeated: tokens that were proposed since the text had them before. echoed: those accepted.
    """

    drafted: int
    accepted: int
    tokens: int
    passes: int
    ties: int
    deep: int = 1
    repeated: int = 0
    echoed: int = 0


@dataclass
class Statistics:
    """Of calls of :func:`phiquant.generate` with one model; the time of prompts is counted."""

    deep: Reading = Reading(0, 0)
    shallow: Reading = Reading(0, 0)
    rounds: list[Round] = field(default_factory=list)
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0

    @property
    def drafted(self) -> int:
        return sum(r.drafted for r in self.rounds)

    @property
    def accepted(self) -> int:
        return sum(r.accepted for r in self.rounds)

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that were accepted; 0 if none was drafted."""
        return self.accepted / max(self.drafted, 1)

    @property
    def repeated(self) -> int:
        """Tokens that were proposed since the text had them before, which takes no pass."""
        return sum(r.repeated for r in self.rounds)

    @property
    def echoed(self) -> int:
        """How many of them were accepted."""
        return sum(r.echoed for r in self.rounds)

    @property
    def draft_passes(self) -> int:
        return sum(r.passes for r in self.rounds)

    @property
    def ties(self) -> int:
        """Passes of one token that decided between words whose logits nearly tie."""
        return sum(r.ties for r in self.rounds)

    @property
    def deep_passes(self) -> int:
        """Passes of the model itself: verifications, plain steps and ties."""
        return sum(r.deep for r in self.rounds) + self.ties

    @property
    def tokens_per_pass(self) -> float:
        """New tokens for each pass of the model itself, over all sequences."""
        return self._decoded / max(self.deep_passes, 1)

    @property
    def bytes_per_token(self) -> float:
        return self._mean(self.deep.bytes, self.shallow.bytes)

    @property
    def planes_per_token(self) -> float:
        return self._mean(self.deep.planes, self.shallow.planes)

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def _decoded(self) -> int:
        """New tokens but the first of each sequence, which the prompt's pass gives."""
        return sum(r.tokens for r in self.rounds)

    def _mean(self, deep: float, shallow: float) -> float:
        return (self.deep_passes * deep + self.draft_passes * shallow) / max(self._decoded, 1)

    def __str__(self) -> str:
        return (
            f"{self.new_tokens} tokens, {self.tokens_per_second:.1f} a second; "
            f"{self.accepted} of {self.drafted} drafted tokens accepted, "
            f"{self.echoed} of {self.repeated} repeated ones, "
            f"{self.tokens_per_pass:.2f} tokens a deep pass, {self.ties} near ties; "
            f"{self.planes_per_token:.2f} planes and {self.bytes_per_token / 1e6:.1f} MB a token"
        )
