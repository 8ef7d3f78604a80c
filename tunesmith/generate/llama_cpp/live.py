"""The live generator on a GGUF model: requests come at any time and share the batches of one thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.generate.asked import Guides, require_answerable
from tunesmith.generate.llama_cpp.contract import contract_of_gguf
from tunesmith.generate.llama_cpp.model import LlamaModel
from tunesmith.generate.llama_cpp.slots import LlamaSlots, Writing
from tunesmith.generate.protocol import LiveLoad, LiveRequest, TokenEvent
from tunesmith.generate.sampling import stream_key

_GUIDES = 16  # grammars that are kept
Deliver = Callable[[Sequence[TokenEvent]], None]


class LiveLlama:
    """See `generate.protocol.LiveGenerator`. `contract`: grammars are for its tokenizer; else for the file's own."""

    def __init__(self, model: LlamaModel, contract: Contract | None = None) -> None:
        self.model = model
        self._changed = threading.Condition()
        self._waiting: deque[Writing] = deque()
        self._cancelled: set[int] = set()
        self._known: set[int] = set()  # tickets that wait or are at work
        self._guides = Guides(lambda: contract or contract_of_gguf(model.path), model.width, _GUIDES)
        self._closing = False
        self._active = self._tokens = 0
        self._thread: threading.Thread | None = None

    @property
    def room(self) -> int:
        """Most tokens that a prompt and its answer may have together."""
        return self.model.room

    @property
    def slots(self) -> int:
        """Most answers that are written side by side."""
        return self.model.slots

    @property
    def adapters(self) -> tuple[str, ...]:
        """None by name: an adapter is loaded with the model."""
        return ()

    def start(self, deliver: Deliver) -> None:
        """Begins to work. `deliver` gets the events of a step, on the generator's own thread."""
        if self._thread is not None:
            raise RuntimeError("the generator has been started")
        self.model.claim()
        self._thread = threading.Thread(target=self._run, args=(deliver,), name="llama.cpp", daemon=True)
        self._thread.start()

    def submit(self, ticket: int, request: LiveRequest) -> None:
        """Puts a request at the end of the queue. ModelError where it can't be answered."""
        self._require_answerable(request)
        guide = None if request.schema is None else self._guides.of(request.schema, request.stop_ids)
        one = Writing(
            ticket,
            request.prompt,
            request.max_tokens,
            request.stop_ids,
            request.temperature,
            request.top_p,
            stream_key(request.seed, 0, request.sample),
            request.top,
            request.prompt_logprobs,
            guide,
        )
        with self._changed:
            if self._closing:
                raise ModelError("the model is being unloaded", fix="ask again: it is loaded anew")
            if ticket in self._known:
                raise ValueError(f"ticket {ticket} is in use")
            self._known.add(ticket)
            self._waiting.append(one)
            self._changed.notify()

    def cancel(self, ticket: int) -> None:
        """Ends a request before the next step; a ticket that is not known is nothing."""
        with self._changed:
            if ticket in self._known:
                self._cancelled.add(ticket)
                self._changed.notify()

    def load(self) -> LiveLoad:
        """How busy it is."""
        with self._changed:
            return LiveLoad(self._active, len(self._waiting), self._tokens)

    @property
    def closed(self) -> bool:
        """It takes no more requests: it was closed, or its thread has ended by an error."""
        return self._closing

    def close(self) -> None:
        """Ends the thread and frees the memory. Requests in progress end as cancelled."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self.model.close()

    # ---- inside

    def _require_answerable(self, request: LiveRequest) -> None:
        require_answerable(request, self.room, self.model.width)
        if request.adapter:
            raise ModelError(
                f"there is no adapter {request.adapter!r}: a GGUF model is loaded with its adapter"
            )

    def _run(self, deliver: Deliver) -> None:
        try:
            self._work(LlamaSlots(self.model), deliver)
        finally:
            self.model.release()
            with self._changed:
                self._closing = True
                left, self._known = self._known, set()
            if left:  # an error that no request is to blame for: nobody may wait for ever
                error = ModelError("the model has ended by an error", fix="ask again: it is loaded anew")
                with suppress(Exception):
                    deliver([TokenEvent(ticket, end="failed", error=error) for ticket in left])

    def _work(self, slots: LlamaSlots, deliver: Deliver) -> None:
        while True:
            with self._changed:
                while not (self._waiting or slots.active or self._cancelled or self._closing):
                    self._changed.wait()
                events = self._admit(slots)
                if self._closing:
                    events += self._end_all(slots, "cancelled", None)
            if not events or slots.active:
                events += self._step(slots)
            self._count(slots, events)
            if events:
                deliver(events)
            if self._closing and not slots.active:
                return

    def _admit(self, slots: LlamaSlots) -> list[TokenEvent]:
        """Ends what was cancelled, and gives free slots to those that wait."""
        cancelled, self._cancelled = self._cancelled, set()
        events = []
        if cancelled:
            for one in slots.active:
                if one.ticket in cancelled:
                    slots.drop(one)
                    events.append(TokenEvent(one.ticket, end="cancelled"))
            events += [
                TokenEvent(one.ticket, end="cancelled") for one in self._waiting if one.ticket in cancelled
            ]
            self._waiting = deque(one for one in self._waiting if one.ticket not in cancelled)
        while self._waiting and slots.free:
            one = self._waiting.popleft()
            if one.max_tokens == 0 and not one.prompt_logprobs:
                events.append(TokenEvent(one.ticket, end="length"))
            else:
                slots.admit(one)
        return events

    def _step(self, slots: LlamaSlots) -> list[TokenEvent]:
        try:
            return slots.step()
        except Exception as error:  # llama.cpp can't say which answer is to blame: all of the batch end
            return self._end_all(slots, "failed", error)

    def _end_all(self, slots: LlamaSlots, end: str, error: Exception | None) -> list[TokenEvent]:
        tickets = [one.ticket for one in slots.active]
        if end == "cancelled":
            tickets += [one.ticket for one in self._waiting]
            self._waiting.clear()
        slots.drop_all()
        return [TokenEvent(ticket, end=end, error=error) for ticket in tickets]  # type: ignore[arg-type]

    def _count(self, slots: LlamaSlots, events: Sequence[TokenEvent]) -> None:
        with self._changed:
            self._active = len(slots.active)
            self._tokens += sum(event.token is not None for event in events)
            ended = {event.ticket for event in events if event.end}
            self._known -= ended
            self._cancelled -= ended  # too late; the tickets may come again
