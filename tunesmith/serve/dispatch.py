"""From a generator's thread into the event loop: the events of a step move over in one call, to whoever reads them.

A reader takes all that has come since it last looked, so that one that falls behind writes fewer and longer chunks.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from weakref import WeakKeyDictionary

from tunesmith.generate.protocol import LiveGenerator, LiveRequest, TokenEvent

_QUICK = 1 << 14  # prompt tokens of a request that are looked through in the loop: half a millisecond


class Mailbox:
    """The events of one client's requests (several where it asks for several answers)."""

    def __init__(self, dispatch: Dispatch, live: LiveGenerator) -> None:
        self._dispatch, self._live = dispatch, live
        self._number: dict[int, int] = {}  # ticket -> which of the requests; without those that have ended
        self._events: list[tuple[int, TokenEvent]] = []
        self._waiter: asyncio.Future[None] | None = None

    async def submit(self, requests: Sequence[LiveRequest]) -> None:
        """Asks for answers, numbered as they stand here. TunesmithError where one can't be written: none is then."""
        quick = sum(len(request.prompt) for request in requests) <= _QUICK
        for number, request in enumerate(requests):
            ticket = self._dispatch.opened(self)
            self._number[ticket] = number
            try:
                if quick and request.schema is None:
                    self._live.submit(ticket, request)
                else:
                    await self._beside(ticket, request)
            except Exception:
                self._forget(ticket)
                self.close()
                raise

    async def _beside(self, ticket: int, request: LiveRequest) -> None:
        """Beside the loop: a grammar takes a while to make, a long prompt to look through."""
        sent = asyncio.ensure_future(asyncio.to_thread(self._live.submit, ticket, request))
        try:
            await asyncio.shield(sent)
        except asyncio.CancelledError:
            sent.add_done_callback(partial(self._too_late, ticket))
            raise

    async def take(self) -> list[tuple[int, TokenEvent]]:
        """All events that have come, each with the number of its request; waits for one where there is none."""
        if not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._events = self._events, []
        return taken

    def put(self, event: TokenEvent) -> None:
        """In the loop: an event of one of these requests."""
        number = self._number.get(event.ticket)
        if number is None:
            return
        self._events.append((number, event))
        if event.end:
            self._forget(event.ticket)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cancel(self, number: int) -> None:
        """Ends one request; nothing more of it is taken."""
        for ticket in [ticket for ticket, one in self._number.items() if one == number]:
            self._forget(ticket)
            self._live.cancel(ticket)
        self._events = [one for one in self._events if one[0] != number]

    def close(self) -> None:
        """Ends all requests that are still written."""
        for number in set(self._number.values()):
            self.cancel(number)

    def _forget(self, ticket: int) -> None:
        self._number.pop(ticket, None)
        self._dispatch.closed(ticket)

    def _too_late(self, ticket: int, done: asyncio.Future[None]) -> None:
        """The client went while its request was on the way: it is in the queue by now."""
        if not done.cancelled() and done.exception() is None:
            self._live.cancel(ticket)


class Dispatch:
    """Of one generator, which it does not keep alive. Made, and the generator started, in the loop that reads."""

    def __init__(self, live: LiveGenerator) -> None:
        self._loop = asyncio.get_running_loop()
        self._tickets = itertools.count(1)
        self._boxes: dict[int, Mailbox] = {}
        self._come: list[Sequence[TokenEvent]] = []  # steps that the loop has not seen
        self._lock = threading.Lock()
        live.start(self._deliver)

    @property
    def open(self) -> int:
        """Requests that somebody reads."""
        return len(self._boxes)

    def opened(self, box: Mailbox) -> int:
        """A ticket whose events go into the box."""
        ticket = next(self._tickets)
        self._boxes[ticket] = box
        return ticket

    def closed(self, ticket: int) -> None:
        """Nobody reads it any more."""
        self._boxes.pop(ticket, None)

    def _deliver(self, events: Sequence[TokenEvent]) -> None:
        """On the generator's thread; the loop is woken once, however many steps pass until it has time."""
        with self._lock:
            self._come.append(events)
            if len(self._come) > 1:
                return
        with suppress(RuntimeError):  # the loop is closed: nobody reads
            self._loop.call_soon_threadsafe(self._move)

    def _move(self) -> None:
        with self._lock:
            steps, self._come = self._come, []
        for events in steps:
            for event in events:
                box = self._boxes.get(event.ticket)
                if box is not None:
                    box.put(event)


class Dispatches:
    """One for each generator, made when it is first asked; gone with it."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[LiveGenerator, Dispatch] = WeakKeyDictionary()

    def mailbox(self, live: LiveGenerator) -> Mailbox:
        """For the requests of one client. Starts the generator where it is new."""
        if live not in self._made:
            self._made[live] = Dispatch(live)
        return Mailbox(self._made[live], live)

    @property
    def open(self) -> int:
        """Requests that somebody reads."""
        return sum(dispatch.open for dispatch in self._made.values())
