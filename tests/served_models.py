"""Models behind a real server on a loopback port: a generator that writes what a test says, and the starter."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from tunesmith import starter
from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.generate.live.engine import LiveSlots
from tunesmith.generate.protocol import LiveLoad, LiveRequest, LiveToken, TokenEvent
from tunesmith.model.load import load_model
from tunesmith.recipe import Model
from tunesmith.serve.app import create_app
from tunesmith.serve.limits import Limits
from tunesmith.serve.protocol import ModelStatus, Served, UnknownModel
from tunesmith.serve.state import ServeState

Script = Callable[[LiveRequest], Sequence[int]]


@dataclass
class _Work:
    ticket: int
    request: LiveRequest
    ids: Sequence[int]
    at: int = 0


class ScriptedLive:
    """A live generator whose answers a function says; the stop id is one of them, or the answer is cut.

    `seconds`: of a step. Probabilities are made of the id and its place, so that a test can foretell them.
    """

    def __init__(self, script: Script, slots: int = 16, room: int = 4096, seconds: float = 0.0) -> None:
        self.script, self.slots, self.room, self.seconds = script, slots, room, seconds
        self.adapters: tuple[str, ...] = ()
        self.closed = False
        self.requests: list[LiveRequest] = []
        self.written: dict[int, int] = {}
        """Ticket -> tokens that were written for it."""
        self.fail: Exception | None = None
        self.cancels: list[int] = []
        """Every ticket that was to be ended."""
        self.go = threading.Event()
        """Cleared: it stands still after its step."""
        self.go.set()
        self._wake = threading.Condition()
        self._waiting: list[_Work] = []
        self._active: list[_Work] = []
        self._cancelled: set[int] = set()
        self._closed = False

    def start(self, deliver: Callable[[Sequence[TokenEvent]], None]) -> None:
        threading.Thread(target=self._run, args=(deliver,), daemon=True).start()

    def submit(self, ticket: int, request: LiveRequest) -> None:
        if request.schema is not None and "unsound" in request.schema:
            raise ModelError("answers can't be held to this schema")
        with self._wake:
            self.requests.append(request)
            self._waiting.append(_Work(ticket, request, self.script(request)))
            self._wake.notify()

    def cancel(self, ticket: int) -> None:
        with self._wake:
            self.cancels.append(ticket)
            if any(work.ticket == ticket for work in self._active + self._waiting):
                self._cancelled.add(ticket)
            self._wake.notify()

    def load(self) -> LiveLoad:
        with self._wake:
            return LiveLoad(len(self._active), len(self._waiting), sum(self.written.values()))

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()

    def _run(self, deliver: Callable[[Sequence[TokenEvent]], None]) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._active or self._closed)
                free = self.slots - len(self._active)
                self._active += self._waiting[:free]
                del self._waiting[:free]
                ended = [
                    work
                    for work in self._active + self._waiting
                    if work.ticket in self._cancelled or self._closed
                ]
                self._active = [work for work in self._active if work not in ended]
                self._waiting = [work for work in self._waiting if work not in ended]
                self._cancelled.clear()
                closed = self._closed
                events = [TokenEvent(work.ticket, end="cancelled") for work in ended]
                events += [self._step(work) for work in self._active]
                over = {event.ticket for event in events if event.end}
                self._active = [work for work in self._active if work.ticket not in over]
            if events:
                deliver(events)
            if closed:
                return
            if self.seconds:
                time.sleep(self.seconds)
            assert self.go.wait(60)

    def _step(self, work: _Work) -> TokenEvent:
        if self.fail is not None:
            return TokenEvent(work.ticket, end="failed", error=self.fail)
        request, prompt = work.request, ()
        if work.at == 0 and request.prompt_logprobs:
            told = [self.told(one, place, request.top) for place, one in enumerate(request.prompt)]
            prompt = (told[0]._replace(logprob=math.nan, top=()), *told[1:])
        if request.max_tokens == 0:
            return TokenEvent(work.ticket, prompt=prompt, end="length")
        one = work.ids[work.at]
        token = self.told(one, work.at, request.top)
        work.at += 1
        self.written[work.ticket] = work.at
        end = "stop" if one in request.stop_ids else "length" if work.at == request.max_tokens else ""
        return TokenEvent(work.ticket, token, prompt, end)  # type: ignore[arg-type]

    @staticmethod
    def told(one: int, place: int, top: int) -> LiveToken:
        """What is told of a token."""
        logprob = -0.5 - one / 1000 - place / 100_000
        return LiveToken(one, logprob, tuple((one + n, logprob - n) for n in range(top)))


class ReadyModels:
    """Models that are there."""

    def __init__(self, *served: Served) -> None:
        self._served = {one.name: one for one in served}

    def names(self) -> tuple[str, ...]:
        return tuple(self._served)

    def status(self) -> tuple[ModelStatus, ...]:
        return tuple(
            ModelStatus(name, "ready", done=1.0, facts={"engine": one.engine})
            for name, one in self._served.items()
        )

    async def get(self, name: str) -> Served:
        if name not in self._served:
            raise UnknownModel(f"there is no model {name!r}")
        return self._served[name]

    def close(self) -> None:
        for one in self._served.values():
            one.live.close()


def starter_contract(system: str | None = None) -> Contract:
    """Of the starter's tokenizer."""
    return Contract.make(starter.base_folder(), system=system)


def starter_served(name: str = "starter", slots: int = 8, **about: object) -> Served:
    """The starter by our own engine, in float32."""
    model = load_model(resolve(Model(base="starter")), dtype="float32")
    contract = starter_contract()
    live = LiveSlots(model, contract, slots=slots, context=1024)
    return Served(name, contract, live, "transformers", **{"max_tokens": 48, **about})  # type: ignore[arg-type]


@contextmanager
def served_at(*served: Served, limits: Limits | None = None) -> Iterator[str]:
    """A real server in a thread; its address."""
    state = ServeState(ReadyModels(*served), limits or Limits(), log=lambda line: None)
    config = uvicorn.Config(create_app(state), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        state.models.close()
        thread.join(30)
