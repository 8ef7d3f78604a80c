"""Connections whose other side reads nothing, or slowly: on real sockets, before an app that only answers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from tunesmith.serve.limits import Limits
from tunesmith.serve.running import http
from tunesmith.serve.running.http import patient

KERNEL = 64 << 10  # asked for as a socket's buffer: what is sent beyond waits in the server


answered = list[str]()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """As many bytes as the path says."""
    answered.append(scope["path"])
    body = b"x" * int(scope["path"][1:])
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def answering(limits: Limits) -> Iterator[tuple[uvicorn.Server, tuple[str, int]]]:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
    server = uvicorn.Server(
        uvicorn.Config(
            app, http=patient(limits), ws="none", lifespan="off", log_config=None,
            timeout_keep_alive=limits.idle_seconds, timeout_graceful_shutdown=1,
        )
    )  # fmt: skip
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
    thread.start()
    try:
        yield server, sock.getsockname()
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()


def asking(address: tuple[str, int], size: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(address)
    sock.sendall(f"GET /{size} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


def let_go(seconds: float) -> bool:
    """Whether clients that read nothing are let go, however much of their answer the kernel took."""
    answered.clear()
    limits = Limits(idle_seconds=1, unread_seconds=1.0)
    with answering(limits) as (server, address):
        socks = [asking(address, size << 10) for size in range(16, 1024, 24)]
        try:
            while len(answered) < len(socks):
                time.sleep(0.1)
            end = time.monotonic() + seconds
            while server.server_state.connections and time.monotonic() < end:
                time.sleep(0.1)
            return not server.server_state.connections
        finally:
            for sock in socks:
                sock.close()


def test_who_reads_nothing_is_let_go() -> None:
    assert let_go(60)


def test_without_a_timer_for_the_last_bytes_some_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = asyncio.selector_events._SelectorTransport  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, "set_write_buffer_limits", lambda self, high=None, low=None: None)
    assert not let_go(8)


def read_slowly(size: int) -> int:
    """Bytes that came to a client that reads 0.5 MB a second, where 3 seconds may go by unread."""
    with answering(Limits(unread_seconds=3.0)) as (_, address), asking(address, size) as sock:
        came = 0
        try:
            while came < size and (data := sock.recv(64 << 10)):
                came += len(data)
                time.sleep(len(data) / 0.5e6)
        except ConnectionResetError:
            pass
        return came


def test_who_reads_slowly_gets_it_all() -> None:
    assert read_slowly(3 << 20) >= 3 << 20


def test_who_reads_next_to_nothing_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_LEAST", 64 << 20)
    assert read_slowly(3 << 20) < 3 << 20
