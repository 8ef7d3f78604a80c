"""A server from its first request to its last: listens at once, loads behind, drains at SIGTERM, ends its engines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn

from tunesmith import console
from tunesmith.errors import Stopped
from tunesmith.serve.app import create_app
from tunesmith.serve.running.http import patient
from tunesmith.serve.state import ServeState

_ECHO = 0.3  # seconds: a terminal's Ctrl-C and a wrapper that passes it on are one signal
_LAST = 10.0  # seconds for engines to end, after which the process ends without them


class _Server(uvicorn.Server):
    """uvicorn's, which leaves signals to us: it would stop listening before /health could say why."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(
    state: ServeState,
    sock: socket.socket,
    ready: Callable[[], None],
    listening: Callable[[], None] = lambda: None,
) -> None:
    """Serves until a signal. `listening` is called once signals are heard, `ready` once the first model can answer.

    Stopped where a second signal cut answers off; TunesmithError where the first model can't be loaded.
    """
    lines = LogLines()
    state.log = lines.put
    try:
        asyncio.run(_Life(state, sock, ready).serve(listening))
    finally:
        lines.close()


class _Life:
    def __init__(self, state: ServeState, sock: socket.socket, ready: Callable[[], None]) -> None:
        self._state, self._sock, self._ready = state, sock, ready
        limits = state.limits
        self._server = _Server(
            uvicorn.Config(
                create_app(state),
                http=patient(limits),
                ws="none",
                loop="asyncio",
                log_config=None,
                log_level="critical",  # errors of ours are logged by the guards, without what was asked
                access_log=False,
                proxy_headers=False,  # anybody may write those
                server_header=False,
                limit_concurrency=limits.connections,
                timeout_keep_alive=limits.idle_seconds,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=limits.header_bytes,
            )
        )
        self._signalled = 0.0
        self._forced = False
        self._failed: Exception | None = None
        self._drain: asyncio.Task[None] | None = None

    async def serve(self, listening: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signal, number)
        listening()
        loading = asyncio.create_task(self._load())
        try:
            await self._server.serve([self._sock])
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await asyncio.to_thread(self._state.models.close)  # while signals are still heard
        if self._forced:
            raise Stopped("stopped at once: answers in progress were cut off")
        if self._failed is not None:
            raise self._failed

    async def _load(self) -> None:
        """The first model, while the server already says how far it is; a server without it is of no use."""
        try:
            await self._state.models.get(self._state.models.names()[0])
        except Exception as error:
            self._failed, self._server.should_exit = error, True
        else:
            self._ready()

    def _signal(self, number: int) -> None:
        now = time.monotonic()
        if not self._state.draining:
            self._signalled, self._state.draining = now, True
            open_now, seconds = self._state.in_progress, self._state.limits.drain_seconds
            console.note(
                f"{signal.Signals(number).name}: {open_now} answers in progress, at most {seconds:g} s for them "
                "(again: leave at once)"
            )
            self._drain = asyncio.create_task(self._drained())
        elif now - self._signalled > _ECHO:
            self._forced = self._server.force_exit = self._server.should_exit = True
            _end_without(Stopped.exit_code)

    async def _drained(self) -> None:
        end = self._signalled + self._state.limits.drain_seconds
        while self._state.in_progress and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if self._state.in_progress:
            console.warn(f"{self._state.in_progress} answers were cut off after the time for them")
        self._server.should_exit = True
        _end_without(0)


def _end_without(code: int) -> None:
    """A model that is being downloaded, or an engine that hangs, doesn't hold the process back."""

    def end() -> None:
        sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(_LAST if code == 0 else _LAST / 4, end)
    timer.daemon = True
    timer.start()


class LogLines:
    """Lines on a thread of its own: whoever doesn't read stderr doesn't stop the server. Full: they are lost."""

    def __init__(self, most: int = 10_000) -> None:
        self._queue: queue.Queue[str | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(line)

    def close(self) -> None:
        """What is still in the queue is written, if that goes quickly."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(1.0)

    def _work(self) -> None:
        while (line := self._queue.get()) is not None:
            console.note(line)
