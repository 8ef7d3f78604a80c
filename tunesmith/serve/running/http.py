"""One connection: uvicorn's own, with time limits that it lacks."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.serve.limits import Limits


def patient(limits: Limits) -> type[asyncio.Protocol]:
    """A connection that ends where headers don't come in time, or where nobody reads the answer."""

    class Patient(H11Protocol):
        _headers: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._headers = self.loop.call_later(limits.header_seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                _end(self._headers)
                self._headers = None
            elif self._headers is None:  # the head of another request has begun to come
                self._headers = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            _end(self._headers)
            _end(self._unread)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(limits.unread_seconds, self.transport.abort)

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
