"""One connection: uvicorn's own, with time limits that it lacks."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.serve.limits import Limits

# bytes of a long answer that have to be taken in `unread_seconds`, or all where fewer are left
_LEAST = 64 << 10


def patient(limits: Limits) -> type[asyncio.Protocol]:
    """A connection that ends where headers, or a body that nobody waits for, don't come in time, or where nobody reads
    the answer."""

    class Patient(H11Protocol):
        _headers: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _rest: asyncio.TimerHandle | None = None
        # bytes that waited to be read when they were last counted; the loop's time for all
        _left, _until = 0, 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._headers = self.loop.call_later(limits.header_seconds, transport.abort)
            # by default the last 64 KiB of an answer are waited for by nobody
            transport.set_write_buffer_limits(high=0)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                _end(self._headers)
                self._headers = None
            elif self._headers is None:  # the head of another request has begun to come
                self._headers = self.loop.call_later(limits.header_seconds, self.transport.abort)
            if self.conn.their_state is not h11.SEND_BODY:
                _end(self._rest)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY:
                # refused unread: each byte of the rest would end uvicorn's timer
                _end(self._rest)
                self._rest = self.loop.call_later(limits.body_seconds, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            _end(self._headers)
            _end(self._rest)
            _end(self._unread)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._left = self.transport.get_write_buffer_size()
            self._until = self.loop.time() + limits.request_seconds
            self._unread = self.loop.call_later(limits.unread_seconds, self._look)

        def _look(self) -> None:
            """A client that reads slowly is waited for, one that doesn't read is not."""
            left = self.transport.get_write_buffer_size()
            if self._left - left < _LEAST or self.loop.time() > self._until:
                self.transport.abort()
                return
            self._left = left
            self._unread = self.loop.call_later(limits.unread_seconds, self._look)

        def resume_writing(self) -> None:
            _end(self._unread)
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.abort()  # what can't be read came behind an answer that has begun
                return
            said = {"message": "this is no HTTP request that can be read", "type": "invalid_request_error"}
            body = json.dumps({"error": said | {"param": None, "code": None}}).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            response = h11.Response(status_code=400, headers=[*headers, ("connection", "close")])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Patient


def _end(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
