"""The one way to an answer: what any route asks goes through here to a live generator, and its text comes back.

Limits, prompts, stop strings, counts and the end of an answer mean the same in every API, because they are made here.
"""

from __future__ import annotations

import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.generate.protocol import LiveRequest, LiveToken, TokenEvent
from tunesmith.serve.dispatch import Mailbox
from tunesmith.serve.errors import Ended, TooLong
from tunesmith.serve.limits import Limits
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.protocol import Served, Unservable
from tunesmith.serve.state import ServeState
from tunesmith.serve.writing.choice import Choice, Part, Told
from tunesmith.serve.writing.detokenise import Pieces


@dataclass(frozen=True)
class Names:
    """What an API calls the fields that may be wrong here."""

    prompt: str = "messages"
    max_tokens: str = "max_tokens"
    answers: str = "n"
    stop: str = "stop"
    top: str = "top_logprobs"
    schema: str = "response_format"


@dataclass(frozen=True)
class Ask:
    """What a client asks; None: as the model was measured."""

    prompts: Sequence[Sequence[int]]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    """None: another one every time."""
    n: int = 1
    """Answers to each prompt."""
    stops: tuple[str, ...] = ()
    top: int | None = None
    """Likeliest tokens that are told beside each of the answer's; None: no probabilities are told."""
    prompt_logprobs: bool = False
    schema: Mapping[str, Any] | None = None
    room: int | None = None
    """Tokens of a prompt and its answer, where the client wants fewer than there is room for."""
    cut: bool = False
    """`max_tokens` beyond the room is cut to it, not refused."""
    names: Names = Names()


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    told: tuple[Told, ...]
    prompt: tuple[LiveToken, ...]
    end: str


class Writing:
    """Answers to one client while they are written, numbered prompt by prompt. `close` in any case."""

    def __init__(
        self, served: Served, ask: Ask, box: Mailbox, held: ExitStack, log: Callable[[str], None]
    ) -> None:
        self.served, self.ask = served, ask
        self.begun = time.perf_counter()
        """Seconds: when it was asked."""
        self._box, self._held, self._log = box, held, log
        pieces, stop_ids = Pieces.of(served.contract), served.contract.stop_ids
        self._left = count = len(ask.prompts) * ask.n
        self.choices = [
            Choice(number, pieces, stop_ids, ask.stops, ask.top is not None) for number in range(count)
        ]

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts; once each, however many answers."""
        return sum(map(len, self.ask.prompts))

    @property
    def answer_tokens(self) -> int:
        """Of all answers; the token that ends one counts, as in `max_tokens`."""
        return sum(choice.tokens for choice in self.choices)

    @property
    def ended(self) -> bool:
        """All answers are finished, and `more` has given the last of them."""
        return not self._left

    async def more(self) -> list[Part] | None:
        """What the answers went on with since the last call; waits for it. None: all are finished.

        Ended where one breaks off, Unservable where its schema is to blame.
        """
        if self.ended:
            return None
        events = await self._box.take()
        now = time.perf_counter()
        touched: dict[int, Choice] = {}
        for number, event in events:
            if event.end in ("failed", "cancelled"):
                raise self._broken_off(event)
            choice = self.choices[number]
            if choice.end:
                continue
            touched[number] = choice
            choice.first, choice.last = choice.first or now, now
            if choice.feed(event):
                self._box.cancel(number)
        parts = [part for choice in touched.values() if (part := choice.part())]
        self._left -= sum(bool(part.end) for part in parts)
        return parts

    async def whole(self) -> list[Answer]:
        """All answers, finished."""
        parts: list[list[Part]] = [[] for _ in self.choices]
        while (some := await self.more()) is not None:
            for part in some:
                parts[part.choice].append(part)
        return [
            Answer(
                "".join(part.text for part in each),
                tuple(told for part in each for told in part.told),
                tuple(token for part in each for token in part.prompt),
                each[-1].end,
            )
            for each in parts
        ]

    def close(self) -> None:
        """Nobody reads on: what is still written is cancelled, and its place is free."""
        self._held.close()

    def _broken_off(self, event: TokenEvent) -> TunesmithError:
        if event.end == "cancelled":
            return Ended("the server is closing", 503)
        if isinstance(event.error, RecipeError):  # of the schema: its grammar has become too large
            return Unservable(event.error.what, where=self.ask.names.schema)
        if event.error is not None:
            self._log("".join(traceback.format_exception(event.error)).rstrip())
        return Ended("the model failed on this request; the server's log says why", 500)

    def _count(self, metrics: Metrics) -> None:
        """The answers, finished or not."""
        firsts = [choice.first for choice in self.choices if choice.first]
        metrics.answered(
            self.served.name,
            self.prompt_tokens,
            self.answer_tokens,
            answers=len(self.choices),
            first_seconds=min(firsts) - self.begun if firsts else None,
            all_seconds=max([choice.last for choice in self.choices]) - self.begun,
        )


async def begin(state: ServeState, served: Served, ask: Ask) -> Writing:
    """Puts the requests into the engine's queue. Unservable, or Busy where there is no place now."""
    _require_limits(ask, state.limits)
    longest = [_max_tokens(served, ask, len(prompt)) for prompt in ask.prompts]
    tokens = sum((len(prompt) + most) * ask.n for prompt, most in zip(ask.prompts, longest, strict=True))
    seed = secrets.randbits(53) if ask.seed is None else ask.seed
    requests = [
        LiveRequest(
            prompt=prompt,
            max_tokens=most,
            stop_ids=served.contract.stop_ids,
            temperature=served.temperature if ask.temperature is None else ask.temperature,
            top_p=served.top_p if ask.top_p is None else ask.top_p,
            seed=seed,
            sample=sample,
            top=ask.top or 0,
            prompt_logprobs=ask.prompt_logprobs,
            schema=ask.schema,
            adapter=served.adapter,
        )
        for prompt, most in zip(ask.prompts, longest, strict=True)
        for sample in range(ask.n)
    ]
    with ExitStack() as entered:
        entered.enter_context(state.admission.entered(len(requests), tokens, served.live))
        box = state.dispatches.mailbox(served.live)
        entered.callback(box.close)
        try:
            await box.submit(requests)
        except TunesmithError as error:
            where = ask.names.prompt if ask.schema is None else ask.names.schema
            raise Unservable(error.what, where=where) from None
        held = entered.pop_all()
    writing = Writing(served, ask, box, held, state.log)
    held.callback(writing._count, state.metrics)
    state.metrics.watch(served.name, served.live)
    return writing


def _require_limits(ask: Ask, limits: Limits) -> None:
    names = ask.names
    if ask.n > limits.answers:
        raise Unservable(f"at most {limits.answers} answers to a prompt", where=names.answers)
    if len(ask.stops) > limits.stops or any(len(stop) > limits.stop_length for stop in ask.stops):
        raise Unservable(
            f"at most {limits.stops} stop strings of {limits.stop_length} characters", where=names.stop
        )
    if not all(ask.stops):
        raise Unservable("a stop string is empty", where=names.stop)
    if (ask.top or 0) > limits.top_logprobs:
        raise Unservable(f"at most {limits.top_logprobs} tokens a place are told", where=names.top)


def _max_tokens(served: Served, ask: Ask, prompt: int) -> int:
    """The longest answer to a prompt of that many tokens."""
    room = min(served.live.room, ask.room or served.live.room)
    left = room - prompt
    # "this model's maximum context length is": by these words of OpenAI's other clients know the error (litellm does)
    if left < 0 or (left == 0 and ask.max_tokens != 0):
        raise TooLong(
            f"the prompt has {prompt} tokens; this model's maximum context length is {room} tokens, with the answer",
            where=ask.names.prompt,
        )
    if ask.max_tokens is None:
        return min(served.max_tokens, left)
    if ask.max_tokens > left and not ask.cut:
        raise TooLong(
            f"the prompt has {prompt} tokens and {ask.names.max_tokens} is {ask.max_tokens}; this model's maximum "
            f"context length is {room} tokens",
            where=ask.names.max_tokens,
        )
    return min(ask.max_tokens, left)
