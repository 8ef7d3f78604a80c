"""Each request gets a number, is counted, and leaves a line that holds nothing of what was asked.

A bug ends here too: the client gets 500 and the number, the log the traceback.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.errors import GONE
from tunesmith.serve.guard.reply import client, refuse
from tunesmith.serve.metrics import RECORD, Record
from tunesmith.serve.state import ServeState

LOOKS = ("/health", "/ready", "/metrics")
"""Answered while the server drains, and not waited for."""
_METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())
_UNTOLD = "-"
_PLAIN_WORDS = (
    RuntimeError,
    OSError,
    AssertionError,
)  # what these say is of machines; others repeat their input


class RecordGuard:
    """Request ids, counts, the access log, and the last word on errors."""

    def __init__(self, app: ASGIApp, state: ServeState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, record = self._state, Record(secrets.token_hex(8))
        RECORD.set(record)
        counted = scope["path"] not in LOOKS
        state.in_progress += counted
        begin, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
            await send(message)

        try:
            async with asyncio.timeout(state.limits.request_seconds) as time_left:
                await self._guarded(scope, receive, noted)
            if not status:
                status = GONE
        except Exception as error:
            if isinstance(error, TimeoutError) and time_left.expired():
                if not status:
                    await refuse(scope, noted, 504, f"no answer in {state.limits.request_seconds:g} seconds")
                return  # half an answer is out: as below
            state.log(f"request {record.id} failed\n{told(error)}")
            if status:
                return  # half an answer is out: the server ends the connection without ending the answer
            await refuse(scope, noted, 500, f"the server failed on request {record.id}; its log says why")
        except asyncio.CancelledError:
            if not state.draining:
                raise
            if not status:  # at the end of the time for answers; uvicorn would tell of a bug
                await refuse(scope, noted, 503, "the server is stopping", [(b"connection", b"close")])
        finally:
            state.in_progress -= counted
            self._close(scope, record, status, time.perf_counter() - begin)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._state.draining and scope["path"] not in LOOKS:
            again = [(b"retry-after", b"5"), (b"connection", b"close")]
            await refuse(scope, send, 503, "the server is stopping", again)
            return
        size = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        size += sum(len(key) + len(value) + 4 for key, value in scope["headers"])  # `: ` and the line's end
        if size > self._state.limits.header_bytes:  # h11 counts only what has to be waited for
            await refuse(scope, send, 400, "the request's line and headers are too large")
            return
        await self._app(scope, receive, send)

    def _close(self, scope: Scope, record: Record, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else _UNTOLD
        route = str(getattr(scope.get("route"), "path", None) or _UNTOLD)
        self._state.metrics.requested(method, route, status, seconds)
        tokens = f", tokens {record.prompt_tokens} + {record.answer_tokens}" if record.answer_tokens else ""
        who, ms = client(scope), f"{1000 * seconds:.0f} ms"
        self._state.log(f"request {record.id} {who} {method} {route} {status} {ms}{tokens}")


def told(error: BaseException) -> str:
    """A traceback without what might repeat a prompt: the words of errors that tell of values."""
    lines = traceback.format_tb(error.__traceback__)
    name = type(error).__name__
    said = f"{name}: {error}" if type(error) in _PLAIN_WORDS else f"{name} (its words may repeat a prompt)"
    return "".join(lines) + said
