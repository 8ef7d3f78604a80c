"""What every generator takes and gives, whatever runs the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

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


# ---- answers that are given while they are written: what serving needs


@dataclass(frozen=True)
class LiveRequest:
    """One answer to write live. Draws are a function of (seed, 0, sample, position), as of `Decoding`'s one prompt."""

    prompt: Sequence[int]
    max_tokens: int
    """Longest answer; the token that ends it counts. 0: nothing is written, only `prompt_logprobs` are told."""
    stop_ids: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    sample: int = 0
    top: int = 0
    """How many of the likeliest tokens are told beside each chosen one."""
    prompt_logprobs: bool = False
    """Whether the prompt's own tokens are told with their ln p (and `top`)."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer is held to."""
    adapter: str = ""
    """Which of the engine's adapters answers; empty: the model as it was loaded, without any."""


class LiveToken(NamedTuple):
    """A token of an answer, or of its prompt."""

    id: int
    logprob: float
    """ln p under the model at temperature 1; NaN for a prompt's first token, which nothing foretells."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place with their ln p, likeliest first."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What a step did for one request."""

    ticket: int
    token: LiveToken | None = None
    """The token that was chosen, a stop id included; None where only `prompt` or `end` is told."""
    prompt: tuple[LiveToken, ...] = ()
    """Once, before the first token, where the request asked for `prompt_logprobs`."""
    end: Literal["", "stop", "length", "cancelled", "failed"] = ""
    """Set in a request's last event: ended by a stop id, cut at max_tokens, cancelled, or `error` says why not."""
    error: Exception | None = None


class LiveLoad(NamedTuple):
    """How busy a live generator is."""

    active: int
    waiting: int
    tokens: int
    """Tokens written since it began."""


class LiveGenerator(Protocol):
    """Writes answers to requests that come at any time, side by side; has a thread of its own.

    All methods may be called from any thread.
    """

    @property
    def room(self) -> int:
        """Most tokens that a prompt and its answer may have together."""
        ...

    @property
    def slots(self) -> int:
        """Most answers that are written side by side."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that a request's `adapter` may have, beside the empty one."""
        ...

    def start(self, deliver: Callable[[Sequence[TokenEvent]], None]) -> None:
        """Begins to work. `deliver` gets the events of a step, on the generator's own thread; it must be quick."""
        ...

    def submit(self, ticket: int, request: LiveRequest) -> None:
        """Puts a request at the end of the queue. `ticket`: the caller's number, in every event of this request.

        TunesmithError where it can't be answered (no room, an unsound schema): no event comes then. Making a grammar
        takes a while: call it beside an event loop, not in it.
        """
        ...

    def cancel(self, ticket: int) -> None:
        """Ends a request before the next step; a ticket that is not known is nothing."""
        ...

    def load(self) -> LiveLoad:
        """How busy it is."""
        ...

    @property
    def closed(self) -> bool:
        """It takes no more requests: `close` was called, or its thread has ended by an error."""
        ...

    def close(self) -> None:
        """Ends the thread and frees the memory. Requests in progress end as cancelled."""
        ...
