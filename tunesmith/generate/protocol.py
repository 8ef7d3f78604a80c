"""What every generator takes and gives, whatever runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn, with `auto` resolved. Draws are a function of (seed, prompt, sample, position) alone."""

    max_tokens: int
    """Longest answer; the token that ends it counts."""
    temperature: float = 0.0
    """0: the likeliest token."""
    top_p: float = 1.0
    """The smallest set of tokens with this probability, after the temperature."""
    seed: int = 0
    samples: int = 1
    """Answers per prompt."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer."""

    index: int
    """Of its prompt."""
    sample: int
    ids: list[int]
    """Without the token that ended it."""
    stopped: bool
    """Ended by a stop id; False: cut at max_tokens."""
    logprob: float
    """Sum of ln p over the chosen tokens, the stop included, under the model at temperature 1."""


class Generator(Protocol):
    """Writes answers to prompts."""

    @property
    def key(self) -> str:
        """Names the weights, as they answer now."""
        ...

    @property
    def room(self) -> int:
        """Most tokens that a prompt and its answer may have together."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        stop_ids: frozenset[int],
        done: AbstractSet[tuple[int, int]] = frozenset(),
    ) -> Iterator[Generated]:
        """All answers but those (index, sample) in `done`, in the order in which they are finished."""
        ...
