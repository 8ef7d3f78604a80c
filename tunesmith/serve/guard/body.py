"""Bodies: how large, how slow and how deep. A body is read whole before any route sees the request."""

from __future__ import annotations

import asyncio
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.guard.reply import error_body, header, refuse
from tunesmith.serve.limits import Limits
from tunesmith.serve.state import ServeState

# a string as a whole, closed or not (possessive: each byte is looked at once), or a bracket
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_QUICK = 1 << 16  # bytes that are looked through beside other requests at once
_LINGER = 2.0  # seconds in which the rest of a refused body is thrown away, so that its sender reads why
_WITH_BODY = ("POST", "PUT", "PATCH")


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class BodyGuard:
    """413 too large, 408 too slow, 411 without a length, 400 nested too deep; no route sees such a request."""

    def __init__(self, app: ASGIApp, state: ServeState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await _read(scope, receive, self._state.limits)
        except _Refused as refused:
            if refused.status in (408, 413):
                await _refuse_and_close(scope, receive, send, refused)
            else:
                await refuse(scope, send, refused.status, refused.message)
            return
        if body is None:
            return  # the client is gone
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


async def _read(scope: Scope, receive: Receive, limits: Limits) -> bytes | None:
    """The whole body; None where the client went away."""
    cap = limits.login_body if scope["path"] == "/login" else limits.body
    lengths, chunked = header(scope, b"content-length"), header(scope, b"transfer-encoding")
    if scope["method"] in _WITH_BODY and not lengths and not chunked:
        raise _Refused(411, "Content-Length or Transfer-Encoding: chunked is needed")
    if lengths:
        if len(set(lengths)) > 1 or not lengths[0].isdigit():
            raise _Refused(400, "Content-Length is no number")
        if len(lengths[0]) > 18 or int(lengths[0]) > cap:
            raise _Refused(413, f"the body is too large: at most {cap:,} bytes")
    if header(scope, b"content-encoding") not in ([], [b"identity"]):
        raise _Refused(415, "compressed bodies are not read")
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(limits.body_seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > cap:
                    raise _Refused(413, f"the body is too large: at most {cap:,} bytes")
    except TimeoutError:
        raise _Refused(408, f"the body took more than {limits.body_seconds:g} seconds") from None
    body = b"".join(parts)
    if (
        b"\0" in body
    ):  # in no UTF-8 JSON; a parser would take it for UTF-16 or UTF-32, where depth can't be counted
        raise _Refused(400, "the body is not JSON in UTF-8")
    if len(body) <= _QUICK:
        deep = too_deep(body, limits.json_depth)
    else:
        deep = await asyncio.to_thread(too_deep, body, limits.json_depth)
    if deep:
        raise _Refused(400, f"the body is nested too deep: at most {limits.json_depth} levels")
    return body


def too_deep(body: bytes, most: int) -> bool:
    """Whether brackets outside of strings nest deeper than `most`. Linear in the bytes, whatever they are."""
    if body.count(b"[") + body.count(b"{") <= most:
        return False
    depth = 0
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
            if depth > most:
                return True
        elif first in b"]}":
            depth -= 1
    return False


async def _refuse_and_close(scope: Scope, receive: Receive, send: Send, refused: _Refused) -> None:
    """Says why, takes in what still comes for a moment, and ends the connection."""
    body = error_body(scope["path"], refused.status, refused.message)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        async with asyncio.timeout(_LINGER):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
