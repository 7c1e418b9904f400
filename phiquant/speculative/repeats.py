"""What a text says again: what followed its last tokens where they stood before.

Such tokens cost no pass to propose: texts quote their prompts, keep to their forms and go round in
circles (prompt lookup decoding, Saxena, 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LENGTHS = (5, 4, 3, 2)  # of tokens that are looked up, the longest first


class Repeats:
    """Of one text, which grows.

    Args:
        tokens: the text so far.

    >>> text = Repeats([1, 2, 3, 4, 1, 2])
    >>> text.following()
    (3, 2)
    >>> text.following([3])
    (4, 3)
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens: list[int] = []
        self.followers: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Go on with these tokens."""
        for token in tokens:
            for length in LENGTHS:
                if length <= len(self.tokens):
                    self.followers[tuple(self.tokens[-length:])] = token
            self.tokens.append(token)

    def following(self, ahead: Sequence[int] = ()) -> tuple[int, int] | None:
        """What followed the text's last tokens when they last stood there, and how many they are.

        Args:
            ahead: tokens that are to come before it.
        """
        last = (*self.tokens[-LENGTHS[0] :], *ahead)
        for length in LENGTHS:
            token = self.followers.get(last[-length:])
            if token is not None and length <= len(last):
                return token, length
        return None
