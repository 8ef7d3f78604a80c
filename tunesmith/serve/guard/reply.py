"""What a guard says itself: a refusal as JSON, in the shape of the API that was asked."""

from __future__ import annotations

import json
from collections.abc import Iterable

from starlette.types import Scope, Send

from tunesmith.serve.errors import Refusal

Headers = Iterable[tuple[bytes, bytes]]


def error_body(path: str, status: int, message: str) -> bytes:
    """As the API at this path says what is wrong."""
    return json.dumps(Refusal(status, message).body(path)).encode()


async def refuse(scope: Scope, send: Send, status: int, message: str, headers: Headers = ()) -> None:
    """The whole answer. A websocket is closed before it is accepted."""
    body = error_body(scope["path"], status, message)
    await answer(scope, send, status, body, b"application/json", headers)


async def answer(
    scope: Scope, send: Send, status: int, body: bytes, kind: bytes, headers: Headers = ()
) -> None:
    """A whole answer of any kind."""
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
            return
        begin, rest = "websocket.http.response.start", "websocket.http.response.body"
    else:
        begin, rest = "http.response.start", "http.response.body"
    length = str(len(body)).encode()
    all_headers = [(b"content-type", kind), (b"content-length", length), *headers]
    await send({"type": begin, "status": status, "headers": all_headers})
    await send({"type": rest, "body": body, "more_body": False})


def header(scope: Scope, name: bytes) -> list[bytes]:
    """All values of a header. `name`: in lower case, as ASGI gives them."""
    return [value for key, value in scope["headers"] if key == name]


def client(scope: Scope) -> str:
    """The address that a request came from."""
    return str(scope["client"][0]) if scope.get("client") else "-"
