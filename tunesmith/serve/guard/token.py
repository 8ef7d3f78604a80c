"""The bearer token before every route but /health: pages, files, unknown paths, websockets, routes that come later.

A browser can't send a bearer token by itself. It gets a form with its 401; the form's token goes in a POST body, never
in an address, and is answered with a cookie that no script can read.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tunesmith.serve.guard.access import SESSION_SECONDS, Access
from tunesmith.serve.guard.body import BodyGuard
from tunesmith.serve.guard.login import LOGIN_POLICY, login_page
from tunesmith.serve.guard.reply import Headers, answer, client, header, refuse
from tunesmith.serve.limits import CLIENT
from tunesmith.serve.state import ServeState

OPEN = "/health"


class TokenGuard:
    """401 without a token that this server knows."""

    def __init__(self, app: ASGIApp, state: ServeState) -> None:
        self._app, self._state = app, state
        self._form = BodyGuard(self._log_in, state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = self._state.access
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        CLIENT.set(client(scope))
        if access is None or _is_open(scope):
            await self._app(scope, receive, send)
            return
        token, session = _known(scope, access)
        if scope["type"] == "http" and scope["path"] in ("/login", "/logout"):
            await self._of_login(scope, receive, send, access, session, known=token is not None)
        elif token is None:
            await _ask(scope, send, scope["path"])
        else:
            if len(access.tokens) > 1:
                CLIENT.set(f"token {token}")
            await self._app(scope, receive, send)

    async def _of_login(
        self, scope: Scope, receive: Receive, send: Send, access: Access, session: str, *, known: bool
    ) -> None:
        if scope["path"] == "/logout" and scope["method"] == "POST" and known:
            access.sessions.end(session)
            gone = _cookie(scope, "", 0)
            await answer(scope, send, 303, b"", b"text/plain", [(b"location", b"/login"), gone])
        elif scope["path"] == "/login" and scope["method"] == "POST":
            await self._form(scope, receive, send)
        elif known and scope["path"] == "/login":
            await answer(scope, send, 303, b"", b"text/plain", [(b"location", b"/")])
        else:
            await _ask(scope, send, "/")

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The form's own app, behind the guard of bodies."""
        access, who = self._state.access, client(scope)
        assert access is not None
        body = await Request(scope, receive).body()
        try:
            form = parse_qs(body.decode(), max_num_fields=4)
        except ValueError:
            form = {}
        path = _own_path(form.get("next", ["/"])[0])
        token = access.tokens.find(form.get("token", [""])[0].strip().encode())
        if token is None and (seconds := access.slowed.wait(who)):
            await _ask(scope, send, path, f"too many wrong tokens: try again in {seconds} s", seconds)
            return
        if token is None:
            access.slowed.failed(who)
            await _ask(scope, send, path, "That is not the token.")
            return
        access.slowed.passed(who)
        cookie = _cookie(scope, access.sessions.begin(token), SESSION_SECONDS)
        await answer(scope, send, 303, b"", b"text/plain", [(b"location", path.encode()), cookie])


def _is_open(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["path"] == OPEN and scope["method"] in ("GET", "HEAD")


def _known(scope: Scope, access: Access) -> tuple[int | None, str]:
    """Which token a request has, and its session where it has one."""
    given = header(scope, b"authorization")
    if given:
        kind, _, token = given[0].partition(b" ")
        known = len(given) == 1 and kind.lower() == b"bearer"
        return access.tokens.find(token.strip()) if known else None, ""
    session = _session(scope)
    if not session or not _may_change(scope):
        return None, ""
    return access.sessions.find(session), session


def _may_change(scope: Scope) -> bool:
    """A cookie comes with whatever a browser sends: what changes something must say that a page of ours sent it."""
    reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    # the guard of Host and Origin has seen to it that these are this server's own
    return reads or bool(header(scope, b"origin")) or header(scope, b"sec-fetch-site") == [b"same-origin"]


def _session(scope: Scope) -> str:
    for line in header(scope, b"cookie"):
        try:
            found = SimpleCookie(line.decode("latin-1")).get(_name(scope))
        except CookieError:
            continue
        if found is not None:
            return found.value
    return ""


def _cookie(scope: Scope, value: str, seconds: int) -> tuple[bytes, bytes]:
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    text = f"{_name(scope)}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    return b"set-cookie", text.encode()


def _name(scope: Scope) -> str:
    """Cookies are shared between the ports of a machine: two servers must not log each other out."""
    return f"tunesmith_{(scope.get('server') or ('', 0))[1]}"


def _own_path(path: str) -> str:
    """A path of this server, whatever a form says."""
    return quote(path) if path.startswith("/") and not path.startswith(("//", "/\\", "/login")) else "/"


async def _ask(scope: Scope, send: Send, path: str, said: str = "", wait: int = 0) -> None:
    """401, or 429 where it takes `wait` seconds: as a form where a person looks, else as JSON."""
    challenge: Headers = [(b"www-authenticate", b'Bearer realm="tunesmith"')]
    status = 429 if wait else 401
    if wait:
        challenge = [(b"retry-after", str(wait).encode())]
    wanted = b",".join(header(scope, b"accept"))
    if scope["type"] == "http" and b"text/html" in wanted:
        policy = (b"content-security-policy", LOGIN_POLICY.encode())
        page = login_page(_own_path(path), said)
        await answer(scope, send, status, page, b"text/html; charset=utf-8", [*challenge, policy])
    else:
        why = said or "a token is needed: Authorization: Bearer TOKEN"
        await refuse(scope, send, status, why, challenge)
