"""How far a draft is to be trusted: how often its tokens hold, by its probability of them."""

from __future__ import annotations

from collections.abc import Sequence

_PARTS = 10  # of the probabilities between 0 and 1, each with a chance of its own
_GUESS = 4.0  # tokens that the first guess weighs as much as


class Trust:
    """Learns how often a drafted token is accepted, if those before it were.

    The first guess is 1/3 where the draft gives its token no chance, and 1 where it is certain.
    """

    def __init__(self) -> None:
        self.tried = [_GUESS] * _PARTS
        self.kept = [_GUESS * (1 + 2 * (part + 0.5) / _PARTS) / 3 for part in range(_PARTS)]

    def chance(self, probability: float) -> float:
        part = _part(probability)
        return self.kept[part] / self.tried[part]

    def observe(self, probabilities: Sequence[float], accepted: int) -> None:
        """The draft's probabilities of its tokens, of which the first `accepted` were."""
        for number, probability in enumerate(probabilities[: accepted + 1]):
            part = _part(probability)
            self.tried[part] += 1
            self.kept[part] += number < accepted


def _part(probability: float) -> int:
    return min(int(probability * _PARTS), _PARTS - 1)
