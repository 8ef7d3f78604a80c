"""A server of the pages in a thread, whose models say what a test tells them: real app, real HTTP, no weights.

The answers go through the real routes, contract and text layer; only the tokens are the test's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.generate.protocol import LiveLoad, LiveRequest, LiveToken, TokenEvent
from tunesmith.run import Run
from tunesmith.serve.app import create_app
from tunesmith.serve.protocol import ModelStatus, Served, UnknownModel
from tunesmith.serve.state import ServeState

Say = Callable[[str], str]


class Scripted:
    """A live generator that writes what `say` makes of the prompt's text, a token each `pause` seconds."""

    room, slots, adapters, closed = 8192, 4, (), False

    def __init__(self, contract: Contract, say: Say, pause: float, go: threading.Event) -> None:
        self.contract, self.say, self.pause, self.go = contract, say, pause, go
        self.cancelled: set[int] = set()
        self.asked: list[LiveRequest] = []
        self.written = 0
        self._deliver: Callable[[Sequence[TokenEvent]], None] = lambda events: None

    def start(self, deliver: Callable[[Sequence[TokenEvent]], None]) -> None:
        self._deliver = deliver

    def submit(self, ticket: int, request: LiveRequest) -> None:
        self.asked.append(request)
        threading.Thread(target=self._write, args=(ticket, request), daemon=True).start()

    def cancel(self, ticket: int) -> None:
        self.cancelled.add(ticket)

    def load(self) -> LiveLoad:
        return LiveLoad(0, 0, self.written)

    def close(self) -> None:
        pass

    def _write(self, ticket: int, request: LiveRequest) -> None:
        ids = self.contract.tokens_of(self.say(self.contract.decode(list(request.prompt))))
        for number, token in enumerate([*ids, self.contract.terminator_id], 1):
            if self.pause:
                time.sleep(self.pause)
            if number > 8:
                assert self.go.wait(100)
            if ticket in self.cancelled:
                self._deliver([TokenEvent(ticket, end="cancelled")])
                return
            self.written += 1
            over = "stop" if token in request.stop_ids else "length" if number == request.max_tokens else ""
            self._deliver([TokenEvent(ticket, LiveToken(token, -0.1), end=over)])
            if over:
                return


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Spoken:
    """One model of a stand-in."""

    name: str
    say: Say = lambda prompt: "ok"
    pause: float = 0.0
    run: Run | None = None
    schema: Mapping[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    state: Any = "ready"
    detail: str = ""
    done: float = 1.0
    load_seconds: float = 0.0
    go: threading.Event = field(default_factory=_set)
    """Cleared: an answer stands still behind its eighth token."""


class StandIn:
    """`Models` of what `Spoken` says."""

    def __init__(self, contract: Contract, spoken: Sequence[Spoken]) -> None:
        self.contract, self.spoken = contract, {one.name: one for one in spoken}
        self.live: dict[str, Scripted] = {}

    def names(self) -> tuple[str, ...]:
        return tuple(self.spoken)

    def status(self) -> tuple[ModelStatus, ...]:
        return tuple(
            ModelStatus(one.name, one.state, one.detail, one.done, one.facts) for one in self.spoken.values()
        )

    async def get(self, name: str) -> Served:
        if name not in self.spoken:
            raise UnknownModel(f"no model is called {name!r}", fix=f"one of: {', '.join(self.spoken)}")
        one = self.spoken[name]
        if one.state == "failed":
            raise ModelError(one.detail, fix="give another folder")
        if one.state in ("waiting", "loading"):
            one.state, one.detail, steps = "loading", "model-00001-of-00002.safetensors", 20
            for step in range(steps):
                one.done = step / steps
                await asyncio.sleep(one.load_seconds / steps)
            one.state, one.done = "ready", 1.0
        if name not in self.live:
            self.live[name] = Scripted(self.contract, one.say, one.pause, one.go)
        return Served(
            name,
            self.contract,
            self.live[name],
            "transformers",
            max_tokens=700,
            schema=one.schema,
            run=one.run,
        )

    def close(self) -> None:
        pass


class Server:
    """The app of `state` on a free port of this machine."""

    def __init__(self, state: ServeState) -> None:
        self.app = create_app(state)
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Server:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(10)


def stand_in(folder: Path, contract: Contract, spoken: Sequence[Spoken]) -> ServeState:
    """A state whose runs lie in `folder`."""
    return ServeState(StandIn(contract, spoken), runs_dir=folder)
