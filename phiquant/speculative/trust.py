"""How far a proposed token is to be trusted: how often tokens of its kind hold.

Kinds are numbers: of a drafted token how likely its draft takes it to be, in tenths; of one that
the text repeats how long the repeated tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence

from phiquant.speculative.repeats import LENGTHS

_PARTS = 10  # of the probabilities between 0 and 1
_GUESS = 4.0  # tokens that the first guess weighs as much as
_REPEATED = {2: 0.25, 3: 0.4, 4: 0.6, 5: 0.7}  # a first guess, from chats with SmolLM2


def kind_of_draft(probability: float) -> int:
    return min(int(probability * _PARTS), _PARTS - 1)


def kind_of_repeat(length: int) -> int:
    return _PARTS + LENGTHS.index(length)


def is_repeat(kind: int) -> bool:
    return kind >= _PARTS


class Trust:
    """Learns how often a token of a kind is accepted, if those before it were.

    Args:
        least: the first guess of a drafted token that its draft gives no chance; of one that it is
            certain of 1.
    """

    def __init__(self, least: float = 1 / 3) -> None:
        guesses = [least + (1 - least) * (part + 0.5) / _PARTS for part in range(_PARTS)]
        guesses += [_REPEATED[length] for length in LENGTHS]
        self.tried = [_GUESS] * len(guesses)
        self.kept = [_GUESS * guess for guess in guesses]

    def chance(self, kind: int) -> float:
        return self.kept[kind] / self.tried[kind]

    def observe(self, kinds: Sequence[int], accepted: int) -> None:
        """Tokens of these kinds, of which the first `accepted` held."""
        for number, kind in enumerate(kinds[: accepted + 1]):
            self.tried[kind] += 1
            self.kept[kind] += number < accepted
