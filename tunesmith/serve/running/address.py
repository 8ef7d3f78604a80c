"""Where a server listens: loopback unless a token guards it, and a port that nobody else has."""

from __future__ import annotations

import errno
import ipaddress
import socket

from tunesmith.errors import AccessError, SetupError
from tunesmith.serve.guard.access import MAKE


def listen(host: str, port: int, *, guarded: bool) -> tuple[socket.socket, bool]:
    """A bound socket, and whether it can be reached from this machine alone.

    SetupError where it could be reached from elsewhere and no token is asked for, or where the port is taken.
    """
    if not 0 <= port <= 65535:
        raise SetupError(f"{port} is no port", where="--port", fix="--port 8000, or --port 0 for a free one")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SetupError(
            f"no address is known for {host!r}: {error}", where="--host", fix="--host 127.0.0.1"
        ) from None
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    loopback = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    if not loopback and not guarded:
        raise SetupError(
            f"{host} can be reached from other machines, and no token is asked for",
            where="--host",
            fix=f"{MAKE.format(path='token')}\n         then serve … --host {host} --token-file token",
        )
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1)  # a port that another socket is bound to, but doesn't listen on, is found only here
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            fix = f"--port {port + 1}, or --port 0 for a free one"
            raise SetupError(f"port {port} is in use", where=f"{host}:{port}", fix=fix) from None
        if error.errno == errno.EACCES:
            raise AccessError(
                f"port {port} needs more rights", where=f"{host}:{port}", fix="--port 8000"
            ) from None
        why = error.strerror or str(error)
        raise SetupError(
            f"this machine can't listen there: {why}", where=f"{host}:{port}", fix="--host 127.0.0.1"
        ) from None
    return sock, loopback


def url(sock: socket.socket) -> str:
    """What to type into a browser on this machine."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
