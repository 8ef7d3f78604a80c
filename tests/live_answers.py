"""Live requests for tests: what they write, and what `SlotGenerator` writes for each of them alone."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from tunesmith.generate.protocol import (
    Decoding,
    Guide,
    LiveGenerator,
    LiveRequest,
    LiveToken,
    TokenEvent,
)
from tunesmith.generate.slots import SlotGenerator


@dataclass
class Heard:
    """What came of one request."""

    tokens: list[LiveToken] = field(default_factory=list)
    prompt: tuple[LiveToken, ...] = ()
    end: str = ""
    error: Exception | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


class Ear:
    """Hears a live generator's events; complains of those that may not be."""

    def __init__(self) -> None:
        self.heard: dict[int, Heard] = {}
        self.turns: list[list[TokenEvent]] = []
        self.changed = threading.Condition()
        self._stand: tuple[int, int] | None = None
        self._goes = threading.Semaphore(0)

    def stand(self, ticket: int, tokens: int) -> None:
        """At so many tokens of this one the generator stands still, until `go` is called."""
        self._stand = ticket, tokens

    def go(self) -> None:
        self._goes.release()

    def __call__(self, events: Sequence[TokenEvent]) -> None:
        with self.changed:
            self.turns.append(list(events))
            for event in events:
                one = self.heard.setdefault(event.ticket, Heard())
                assert not one.end, f"an event after the end of {event.ticket}"
                assert event.token or event.prompt or event.end, "an event that says nothing"
                if event.prompt:
                    assert not one.tokens and not one.prompt
                    one.prompt = event.prompt
                if event.token:
                    one.tokens.append(event.token)
                one.end, one.error = event.end, event.error
            self.changed.notify_all()
            ticket, tokens = self._stand or (-1, 0)
            stands = ticket in self.heard and len(self.heard[ticket].tokens) >= tokens
        if stands:
            self._stand = None
            assert self._goes.acquire(timeout=60)

    def wait(self, *tickets: int, tokens: int | None = None, seconds: float = 60) -> None:
        """Until all of these have ended, or have so many tokens."""

        def there(ticket: int) -> bool:
            one = self.heard.get(ticket, Heard())
            return bool(one.end) or (tokens is not None and len(one.tokens) >= tokens)

        with self.changed:
            assert self.changed.wait_for(lambda: all(map(there, tickets)), seconds), "no answer in time"


def close_where_it_stands(live: LiveGenerator, ear: Ear) -> None:
    """`live` is closed while it stands still; it goes on once it knows."""

    def goes_on() -> None:
        while not live.closed:
            time.sleep(0.001)
        ear.go()

    threading.Thread(target=goes_on, daemon=True).start()
    live.close()


def write(live: LiveGenerator, requests: Sequence[LiveRequest]) -> list[Heard]:
    """All of them at once."""
    ear = Ear()
    live.start(ear)
    for ticket, request in enumerate(requests):
        live.submit(ticket, request)
    ear.wait(*range(len(requests)))
    live.close()
    return [ear.heard[ticket] for ticket in range(len(requests))]


def alone(model: PreTrainedModel, request: LiveRequest, guide: Guide | None = None) -> Heard:
    """The same by the batch generator, with nothing beside it."""
    decoding = Decoding(
        request.max_tokens, request.temperature, request.top_p, request.seed, request.sample + 1
    )
    done = {(0, sample) for sample in range(request.sample)}
    (one,) = SlotGenerator(model, slots=1).generate([request.prompt], decoding, request.stop_ids, done, guide)
    ids = [*one.ids]
    if one.stopped:
        ids.append(-1)  # which stop id it was is not told
    tokens = [LiveToken(id, logprob) for id, logprob in zip(ids, one.token_logprobs, strict=True)]
    return Heard(tokens, end="stop" if one.stopped else "length")


def differs(heard: Heard, expected: Heard, request: LiveRequest) -> str:
    """Empty where both are the same answer."""
    ids = [-1 if one in request.stop_ids else one for one in heard.ids]
    if heard.end != expected.end or ids != expected.ids:
        return f"{heard.end} {heard.error!r} {ids}, expected {expected.end} {expected.ids}"
    away = max(abs(a.logprob - b.logprob) for a, b in zip(heard.tokens, expected.tokens, strict=True))
    return "" if away < 2e-4 and not math.isnan(away) else f"ln p is {away} off"
