"""What every generator takes and gives, whatever runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


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
    token_logprobs: list[float]
    """ln p of each of them."""


class Guide(Protocol):
    """Holds answers to a grammar: at each place it forbids the tokens that no right answer could go on with."""

    @property
    def key(self) -> str:
        """Names the grammar."""
        ...

    def begin(self) -> Any:
        """The state of an answer that has not begun."""
        ...

    def hold(self, states: Sequence[Any], logits_NV: Tensor) -> Tensor:
        """The logits with -inf at what may not come next; a row for each state."""
        ...

    def accept(self, states: Sequence[Any], tokens: Sequence[int]) -> None:
        """Each answer went on with its token."""
        ...


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
        guide: Guide | None = None,
    ) -> Iterator[Generated]:
        """All answers but those (index, sample) in `done`, in the order in which they are finished."""
        ...
