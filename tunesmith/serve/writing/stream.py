"""Answers leave while they are written; a client that goes away ends what is written for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tunesmith.errors import TunesmithError
from tunesmith.serve.writing.choice import Part
from tunesmith.serve.writing.writing import Writing

Result = TypeVar("Result")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What the work gives. It is cancelled when the client goes: ClientDisconnect."""
    return await _unless_gone(request.receive, work)


class Wire(Protocol):
    """How an API writes answers that come in parts."""

    @property
    def media_type(self) -> str:
        """Of the whole body."""
        ...

    def of(self, parts: Sequence[Part]) -> bytes:
        """What the answers went on with."""
        ...

    def end(self) -> bytes:
        """Behind the last part."""
        ...

    def failed(self, error: Exception) -> bytes:
        """Instead of what would have come: the status has been sent long ago."""
        ...


class Streamed(Response):
    """A body that comes in chunks. It closes the writing in any case."""

    def __init__(self, writing: Writing, wire: Wire) -> None:
        super().__init__(None, 200, {"x-accel-buffering": "no"}, wire.media_type)
        del self.headers["content-length"]
        self._writing, self._wire = writing, wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await _unless_gone(receive, self._send(send))
        finally:
            self._writing.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        bug, ended = None, False
        while not ended:
            try:
                chunk = self._wire.of(await self._writing.more() or ())
                if ended := self._writing.ended:  # the last events go with the last part
                    chunk += self._wire.end()
            except Exception as error:
                ended, chunk = True, self._wire.failed(error)
                bug = None if isinstance(error, TunesmithError) else error
            await send({"type": "http.response.body", "body": chunk, "more_body": not ended})
        if bug is not None:
            raise bug


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    working, going = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, going), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, going):
            task.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
