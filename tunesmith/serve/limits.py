"""How much a client may ask for, and who is let in."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tunesmith.generate.protocol import LiveGenerator
from tunesmith.serve.protocol import Busy, Unservable

CLIENT: ContextVar[str] = ContextVar("client", default="-")
"""Who asks: which token of several, else which address. Set by the guards, read at admission."""
_WINDOW = 60.0  # seconds over which the pace of finished requests is measured
_LONGEST_WAIT = 120


@dataclass(frozen=True)
class Limits:
    """Caps of one server; `serve --limit NAME=VALUE` sets one."""

    body: int = 2 << 20
    """Bytes of a request."""
    login_body: int = 4096
    """Bytes of a login form."""
    json_depth: int = 64
    """Nested lists and objects of a body."""
    schema_bytes: int = 64 << 10
    """Of a JSON schema that an answer is to follow."""
    header_bytes: int = 32 << 10
    """Of a request's line and headers."""
    connections: int = 1024
    """Open at once; more are told 503."""
    requests: int = 256
    """In progress or waiting at once; more get 429."""
    client_requests: int = 256
    """Of these, by one client: one token where there are several, else one address. All, unless it is set."""
    tokens: int = 1 << 20
    """Prompt and answer tokens of all requests in progress or waiting; more get 429."""
    cache_fulls: int = 8
    """The same of one engine, counted in what its cache holds: what is written now, and what waits behind it."""
    answers: int = 16
    """`n` of one request."""
    stops: int = 16
    """Stop strings of one request, each of at most `stop_length` characters."""
    stop_length: int = 200
    top_logprobs: int = 20
    header_seconds: float = 10.0
    """Until a request's headers have come."""
    body_seconds: float = 30.0
    """Until a request's body has come."""
    idle_seconds: int = 30
    """A connection is kept between two requests."""
    unread_seconds: float = 30.0
    """A client may leave unread what was sent to it."""
    request_seconds: float = 600.0
    """Until an answer is finished."""
    drain_seconds: float = 30.0
    """From SIGTERM on, for answers in progress."""


class Admission:
    """Counts requests and their tokens; more than the limits are turned away, with a time that is worth waiting."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self.requests, self.tokens = limits, 0, 0
        self._clock, self._lock = clock, threading.Lock()
        self._clients: Counter[str] = Counter()
        self._engines: Counter[int] = Counter()  # tokens of each
        self._done: deque[tuple[float, int, int]] = deque()  # when, requests, tokens
        self._busy_since = 0.0

    @contextmanager
    def entered(self, requests: int, tokens: int, live: LiveGenerator | None = None) -> Iterator[None]:
        """Busy where that many do not fit beside those that are in; Unservable where they never would.

        `tokens`: all prompts, and the longest answers. `live`: the engine that is to answer.
        """
        client, engine = CLIENT.get(), id(live)
        with self._lock:
            self._require(requests, tokens, client, engine, live)
            if not self.requests:
                self._busy_since = self._clock()
                self._done.clear()
            self._count(requests, tokens, client, engine)
        try:
            yield
        finally:
            with self._lock:
                self._count(-requests, -tokens, client, engine)
                self._done.append((self._clock(), requests, tokens))

    def _require(
        self, requests: int, tokens: int, client: str, engine: int, live: LiveGenerator | None
    ) -> None:
        limits = self.limits
        caps = [  # what is in, what comes, what may be in
            (self.requests, requests, limits.requests, "requests"),
            (self._clients[client], requests, limits.client_requests, "requests of one client"),
            (self.tokens, tokens, limits.tokens, "tokens"),
        ]
        if live is not None:
            most = limits.cache_fulls * live.slots * live.room
            caps.append((self._engines[engine], tokens, most, "tokens of one model"))
        full: list[tuple[int, str]] = []
        for inside, more, most, what in caps:
            if more > most:
                raise Unservable(f"this asks for {more:,} {what}; the server takes {most:,} at once")
            if inside + more > most:
                seconds = self._wait(inside + more - most, in_tokens="tokens" in what)
                full.append((seconds, f"{inside:,} of {most:,} {what} in progress"))
        if full:
            seconds, why = max(full)
            busy = Busy(f"the server is busy: {why}", fix=f"try again in {seconds} s")
            busy.seconds = seconds
            raise busy

    def _count(self, requests: int, tokens: int, client: str, engine: int) -> None:
        self.requests, self.tokens = self.requests + requests, self.tokens + tokens
        self._clients[client] += requests
        self._engines[engine] += tokens
        if not self._clients[client]:
            del self._clients[client]  # clients come and go
        if not self._engines[engine]:
            del self._engines[engine]

    def _wait(self, excess: int, *, in_tokens: bool) -> int:
        """Seconds until so much will have been finished, at the pace of the last minute."""
        now = self._clock()
        while self._done and self._done[0][0] < now - _WINDOW:
            self._done.popleft()
        busy = now - max(self._busy_since, now - _WINDOW)
        done = sum(tokens if in_tokens else requests for _, requests, tokens in self._done)
        seconds = excess * busy / done if done else busy  # nothing finished yet: as long again
        return min(_LONGEST_WAIT, max(1, math.ceil(seconds)))
