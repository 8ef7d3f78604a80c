"""What a browser may do with an answer: no foreign content, no inline script, no frame, no guessing, no copy kept."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.guard.login import LOGIN_POLICY
from tunesmith.serve.state import ServeState

POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_POLICY, _SHUT_IN, _LOGIN = b"content-security-policy", b"sandbox ", LOGIN_POLICY.encode()
SAFE = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    # not no-referrer: a browser would then send "Origin: null" with the login form
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
_NEVER = (b"access-control-allow-origin", b"access-control-allow-credentials")


class HeaderGuard:
    """Sets these headers on every answer, whatever a route says; `no-store` where a route doesn't say how long.

    Two policies of a route's own stand: a sandbox, whose page (a run's report, with its own script) is nobody's, and
    that of the page that asks for the token.
    """

    def __init__(self, app: ASGIApp, state: ServeState) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                given = [(k.lower(), v) for k, v in message.get("headers", ())]
                shut = [(k, v) for k, v in given if k == _POLICY and (v.startswith(_SHUT_IN) or v == _LOGIN)]
                kept = [(k, v) for k, v in given if k not in SAFE and k not in _NEVER]
                if not any(k == b"cache-control" for k, _ in kept):
                    kept.append((b"cache-control", b"no-store"))
                message["headers"] = [*kept, *(SAFE | dict(shut)).items()]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] != "lifespan" else send)
