"""The vLLM engine: a child process behind the same live generator as the other engines.

Never run on real vLLM where this was written (it needs a card and pins its own torch); tested against a stand-in that
speaks the fields of vllm_wire.py and refuses all others. Draws are vLLM's own: a seed gives other tokens than in the
other engines; greedy answers differ by what vLLM's kernels round.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import console
from tunesmith.errors import ModelError, SetupError, TunesmithError
from tunesmith.generate.protocol import LiveLoad, LiveRequest, LiveToken, TokenEvent
from tunesmith.serve.vllm.child import BASE, TOP, VllmChild, find_vllm, serve_command
from tunesmith.serve.vllm.wire import answer_body, events_of, prompt_body, prompt_tokens, refusal, strange

if TYPE_CHECKING:
    from httpx import AsyncClient

_URL = "http://vllm/v1/completions"
_LOOKS = 0.25  # seconds between looks at the child
Deliver = Callable[[Sequence[TokenEvent]], None]


class LiveVllm:
    """See `generate.protocol.LiveGenerator`. A child that ends is told and not started again: its requests fail."""

    def __init__(self, child: VllmChild, *, context: int, slots: int, adapters: tuple[str, ...]) -> None:
        self.room, self.slots, self.adapters = context, slots, adapters
        self._child = child
        self._changed = threading.Lock()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._tokens = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._known: dict[int, object] = {}  # a mark of its own for each: tickets come again

    @classmethod
    def launch(
        cls,
        model: Path,
        *,
        context: int,
        slots: int,
        dtype: str = "auto",
        adapters: Mapping[str, Path] | None = None,
        told: Callable[[str], object] | None = None,
        program: str | None = None,
    ) -> LiveVllm:
        """Starts `vllm serve` on a Hugging Face folder and returns when it answers.

        adapters: name → PEFT folder. told: gets lines on how far it is. program: instead of the `vllm` that is found.
        SetupError without vLLM or httpx; ModelError where it ends before it answers.
        """
        try:
            import httpx  # noqa: F401
        except ImportError:
            raise SetupError("--engine vllm needs httpx", fix="pip install 'tunesmith[vllm]'") from None
        found, folders = program or find_vllm(), dict(adapters or {})
        if BASE in folders:
            raise ModelError(f"an adapter can't be named {BASE!r} in this engine", fix="give it another name")

        def command(address: Path) -> list[str]:
            return serve_command(
                found, model, address, context=context, slots=slots, dtype=dtype, adapters=folders
            )

        child = VllmChild(command)
        try:
            child.wait_until_ready([BASE, *folders], told or (lambda line: None))
        except BaseException as error:
            if isinstance(error, TunesmithError):
                console.note("\n".join(child.tail(12)))
            child.end()
            raise
        return cls(child, context=context, slots=slots, adapters=tuple(folders))

    # ---- from any thread

    def start(self, deliver: Deliver) -> None:
        """Begins to work. `deliver` gets events on the generator's own thread."""
        if self._thread is not None:
            raise RuntimeError("the generator has been started")
        began = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(deliver, began)), name="vllm", daemon=True
        )
        self._thread.start()
        began.wait()

    def submit(self, ticket: int, request: LiveRequest) -> None:
        """Sends a request on. ModelError where it can't be answered, or vLLM has ended."""
        self._require_answerable(request)
        with self._changed:
            if self._child.code is not None:
                raise self._child.ended()
            if self._closed or self._loop is None:
                raise ModelError("the model is being unloaded", fix="ask again: it is loaded anew")
            if ticket in self._known:
                raise ValueError(f"ticket {ticket} is in use")
            mark = self._known[ticket] = object()
            self._loop.call_soon_threadsafe(self._begin, ticket, mark, request)

    def cancel(self, ticket: int) -> None:
        """Closes a request's stream, at which vLLM ends it; a ticket that is not known is nothing."""
        with self._changed:
            if self._loop is not None and not self._closed and ticket in self._known:
                self._loop.call_soon_threadsafe(self._stop, ticket)

    def load(self) -> LiveLoad:
        """How busy it is; which requests vLLM lets wait is guessed from `slots`."""
        with self._changed:
            count = len(self._known)
            return LiveLoad(min(count, self.slots), max(0, count - self.slots), self._tokens)

    @property
    def closed(self) -> bool:
        """It was closed. A child that has ended does not count: each request is told how it ended."""
        return self._closed

    def close(self) -> None:
        """Ends the requests, the thread and the child."""
        with self._changed:
            self._closed = True
            if self._loop is not None and self._done is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._done.set)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._child.end()

    def _require_answerable(self, request: LiveRequest) -> None:
        count = len(request.prompt)
        if not count:
            raise ModelError("the prompt is empty", fix="send at least one token")
        if count + request.max_tokens > self.room or (request.prompt_logprobs and count + 1 > self.room):
            raise ModelError(
                f"the prompt has {count} tokens, with {request.max_tokens} for the answer more than the "
                f"{self.room} that there is room for",
                fix="shorten the prompt, or ask for fewer tokens",
            )
        if min(request.prompt) < 0:
            raise ModelError("the prompt has negative ids")
        if request.max_tokens < 0 or not 0 <= request.temperature < float("inf"):
            raise ModelError("max_tokens and temperature may not be negative")
        if not 0 <= request.top_p <= 1 or not 0 <= request.top <= TOP:
            raise ModelError(f"top_p is from 0 to 1, and at most {TOP} tokens are told")
        if request.adapter and request.adapter not in self.adapters:
            raise ModelError(f"there is no adapter {request.adapter!r}")

    # ---- on its own thread

    async def _main(self, deliver: Deliver, began: threading.Event) -> None:
        import httpx

        self._deliver, self._done = deliver, asyncio.Event()
        transport = httpx.AsyncHTTPTransport(
            uds=str(self._child.socket), limits=httpx.Limits(max_connections=None)
        )
        async with httpx.AsyncClient(
            transport=transport, headers=self._child.headers, timeout=httpx.Timeout(None, connect=10)
        ) as self._client:
            self._loop = asyncio.get_running_loop()
            began.set()
            watcher = asyncio.create_task(self._watch())
            await self._done.wait()
            watcher.cancel()
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    _client: AsyncClient
    _deliver: Deliver

    async def _watch(self) -> None:
        while self._child.code is None:
            await asyncio.sleep(_LOOKS)
        console.note("\n".join(self._child.tail(12)))
        console.warn(f"{self._child.ended().what}; it is not started again")

    def _begin(self, ticket: int, mark: object, request: LiveRequest) -> None:
        task = self._tasks[ticket] = asyncio.create_task(self._answer(ticket, request))
        task.add_done_callback(lambda done: self._finish(ticket, mark, done))

    def _finish(self, ticket: int, mark: object, done: asyncio.Task[None]) -> None:
        """A task that was cancelled, perhaps before its first line, has told no end.

        Its ticket may belong to the next request by now.
        """
        if self._tasks.get(ticket) is done:
            del self._tasks[ticket]
        if self._known.get(ticket) is mark:
            self._tell([TokenEvent(ticket, end="cancelled")])

    def _stop(self, ticket: int) -> None:
        if task := self._tasks.get(ticket):
            task.cancel()

    async def _answer(self, ticket: int, request: LiveRequest) -> None:
        import httpx

        try:
            await self._write(ticket, request)
        except httpx.HTTPError as error:
            self._tell([TokenEvent(ticket, end="failed", error=await self._broken_off(error))])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._tell([TokenEvent(ticket, end="failed", error=strange(repr(error)))])
        except Exception as error:
            self._tell([TokenEvent(ticket, end="failed", error=error)])

    async def _broken_off(self, error: Exception) -> ModelError:
        """A child that dies closes its connections a moment before it is gone."""
        for _ in range(8):
            if self._child.code is not None:
                return self._child.ended()
            await asyncio.sleep(_LOOKS)
        return ModelError(f"vLLM broke off the answer: {error!r}", where="--engine vllm", fix="ask again")

    async def _write(self, ticket: int, request: LiveRequest) -> None:
        told: tuple[LiveToken, ...] = ()
        if request.prompt_logprobs:
            reply = await self._client.post(_URL, json=prompt_body(request))
            if reply.status_code != 200:
                raise refusal(reply.status_code, _json(reply.content))
            told = prompt_tokens(request, reply.json())
        if request.max_tokens == 0:
            self._tell([TokenEvent(ticket, prompt=told, end="length")])
            return
        async with self._client.stream("POST", _URL, json=answer_body(request)) as stream:
            if stream.status_code != 200:
                raise refusal(stream.status_code, _json(await stream.aread()))
            async for line in stream.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                events = events_of(ticket, request, json.loads(line.removeprefix("data: ")))
                if not events:
                    continue
                if told:
                    events[0] = TokenEvent(ticket, events[0].token, told, events[0].end)
                    told = ()
                self._tell(events)
                if events[-1].end:
                    return
        raise strange("the stream ended before the answer")

    def _tell(self, events: list[TokenEvent]) -> None:
        with self._changed:
            self._tokens += sum(event.token is not None for event in events)
            for event in events:
                if event.end:
                    self._known.pop(event.ticket, None)
        self._deliver(events)


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = {"message": content.decode("utf-8", "replace")}
    return found if isinstance(found, dict) else {"message": str(found)}
