"""Rows longer than the recipe's limit: not trained on, but counted and told."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tunesmith.contract import Encoded
from tunesmith.example import Example

LIMITS = tuple(512 << step for step in range(9))  # in tokens: what cutting there would lose is told


class Overlong(NamedTuple):
    """A row over the limit; lengths in tokens."""

    place: str
    id: str
    tokens: int
    prompt_tokens: int
    learned: int
    beyond: tuple[int, ...]
    """Learned tokens behind each of LIMITS and, last, the recipe's own."""

    @classmethod
    def of(cls, example: Example, encoded: Encoded, max_length: int) -> Overlong:
        """From a row as it was encoded."""
        places = np.flatnonzero(encoded.learned)
        beyond = len(places) - np.searchsorted(places, (*LIMITS, max_length))
        begin = answer_begins(encoded.learned)
        return cls(example.source, example.id, len(encoded.ids), begin, len(places), tuple(beyond.tolist()))


def answer_begins(learned: list[bool]) -> int:
    """The place of the first token of the last learned stretch."""
    backwards = learned[::-1]
    last = backwards.index(True)
    return len(learned) - (backwards.index(False, last) if False in backwards[last:] else len(learned))
