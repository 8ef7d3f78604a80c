"""Host and Origin: no page of another site reaches this server through its user's browser.

A page may make a browser send requests to 127.0.0.1 (cross-site request forgery), and may point its own name there to
read the answers (DNS rebinding). The first is known by Origin and Sec-Fetch-Site, the second by Host.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from tunesmith.serve.guard.reply import header, refuse
from tunesmith.serve.state import ServeState

_PORTS = {"http": 80, "https": 443}


class OriginGuard:
    """403 for a name that isn't this server's, and for what another site's page sends."""

    def __init__(self, app: ASGIApp, state: ServeState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (why := self._wrong(scope)):
            await refuse(scope, send, 403, why)
            return
        await self._app(scope, receive, send)

    def _wrong(self, scope: Scope) -> str:
        hosts = header(scope, b"host")
        own = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        if not allowed_host(own, self._state):
            return "this server isn't known by that name (serve --allow-host NAME adds one)"
        for origin in header(scope, b"origin"):
            if not _same(origin.decode("latin-1").lower(), own):
                return "requests of other sites' pages are not answered"
        site = (header(scope, b"sec-fetch-site") or [b"none"])[0]
        if site not in (b"same-origin", b"none") and not _is_link(scope):
            return "requests of other sites' pages are not answered"
        return ""


def allowed_host(host: str, state: ServeState) -> bool:
    """Whether a Host header names this server; its port doesn't matter (tunnels), its name does.

    Beyond loopback any plain address will do: a name that points here is what rebinding needs.
    """
    name = _name(host)
    if name in state.hosts:
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return not state.loopback or address.is_loopback


def _name(host: str) -> str:
    """Without the port; empty where it isn't a host."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "0")
    return name if port.isdecimal() and port.isascii() and not set(name) & set("/@?#\\ ") else ""


def _same(origin: str, host: str) -> bool:
    """Whether a page of this server sent it. The scheme may differ: TLS may end before this server."""
    try:
        parts = urlsplit(origin) if origin != "null" else None
    except ValueError:  # half an address in brackets
        return False
    if parts is None or parts.scheme not in _PORTS:
        return False
    # browsers leave the usual port out, some proxies don't
    return host in (parts.netloc, f"{parts.netloc}:{_PORTS[parts.scheme]}")


def _is_link(scope: Scope) -> bool:
    """A link that a user followed to here: it shows a page to the user alone."""
    mode, target = header(scope, b"sec-fetch-mode"), header(scope, b"sec-fetch-dest")
    return (
        scope["type"] == "http"
        and scope["method"] == "GET"
        and mode == [b"navigate"]
        and target == [b"document"]
    )
