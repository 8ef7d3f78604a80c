"""How much a client may ask for, and who is let in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tunesmith.serve.protocol import Busy


@dataclass(frozen=True)
class Limits:
    """Caps of one server."""

    body: int = 2 << 20
    """Bytes of a request."""
    requests: int = 256
    """In progress or waiting at once; more get 429."""
    tokens: int = 1 << 20
    """Prompt and answer tokens of all requests in progress or waiting; more get 429."""
    answers: int = 16
    """`n` of one request."""
    stops: int = 16
    """Stop strings of one request, each of at most `stop_length` characters."""
    stop_length: int = 200
    top_logprobs: int = 20
    body_seconds: float = 30.0
    """Until a request's body has come."""
    request_seconds: float = 600.0
    """Until an answer is finished."""
    drain_seconds: float = 30.0
    """From SIGTERM on, for answers in progress."""


class Admission:
    """Counts requests and their tokens; more than the limits are turned away."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.requests, self.tokens = limits, 0, 0

    @contextmanager
    def entered(self, requests: int, tokens: int) -> Iterator[None]:
        """Busy where that many do not fit beside those that are in. `tokens`: all prompts, and the longest answers."""
        if self.requests + requests > self.limits.requests or self.tokens + tokens > self.limits.tokens:
            raise Busy("the server is busy", fix="try again in a moment")
        self.requests, self.tokens = self.requests + requests, self.tokens + tokens
        try:
            yield
        finally:
            self.requests, self.tokens = self.requests - requests, self.tokens - tokens
