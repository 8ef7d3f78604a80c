"""The transformers engine, live: requests that come at any time share the batches of one model.

A request's answer is what `SlotGenerator` writes for its prompt alone, whatever else is in the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

import torch
from transformers import PreTrainedModel

from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.generate.asked import Guides, require_answerable
from tunesmith.generate.live.decoder import LiveDecoder
from tunesmith.generate.live.session import PREFILL_TOKENS, PREFILL_TOKENS_ON_CPU, LiveSession, LiveWork
from tunesmith.generate.protocol import LiveLoad, LiveRequest, TokenEvent
from tunesmith.generate.room import slots_that_fit
from tunesmith.generate.sampling import bytes_a_logit
from tunesmith.model.attention import ATTENTION
from tunesmith.model.lora_bank import LoraBank

MOST_SLOTS = 64  # where nobody says how many
_SCHEMAS = 64  # grammars that are kept


class LiveSlots:
    """A model on our attention, which is not trained meanwhile. See `generate.protocol.LiveGenerator`.

    slots: answers side by side; auto: as many as the memory that is free takes, at most 64.
    context: most tokens of a prompt and its answer together; never more than the model has positions.
    adapters: the bank that was put beside the model's linears.

    Keys and values of `context` tokens are taken for every slot at once: 2 · layers · key heads · head dimension ·
    bytes of a number · context · slots. On an 8B Llama in bf16 that is 1 GiB a slot for 8,192 tokens, so 64 slots take
    64 GiB; with half the context it is half. On a CPU pages are taken when they are first written.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        contract: Contract,
        *,
        slots: int | Literal["auto"] = "auto",
        context: int,
        adapters: LoraBank | None = None,
    ) -> None:
        if model.config._attn_implementation != ATTENTION:
            raise TypeError(
                f"the model attends by {model.config._attn_implementation!r}, not by {ATTENTION!r}"
            )
        if context < 2 or (slots != "auto" and slots < 1):
            raise ValueError(f"{slots} slots of {context} tokens")
        self.room = min(context, int(model.config.max_position_embeddings))
        self.slots = _slots(model, self.room) if slots == "auto" else slots
        self.adapters: tuple[str, ...] = () if adapters is None else adapters.names
        self._words, self._bank = int(model.config.vocab_size), adapters
        model.train(False)
        self._session: LiveSession | None = LiveSession(LiveDecoder(model, self.slots, self.room, adapters))
        self._guides = Guides(lambda: contract, self._words, _SCHEMAS)
        self._wake = threading.Condition()  # guards all that follows
        self._arrived: list[LiveWork] = []
        self._cancelled: set[int] = set()
        self._works: dict[int, LiveWork] = {}
        self._written = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    # ---- from any thread

    def start(self, deliver: Callable[[Sequence[TokenEvent]], None]) -> None:
        """See `LiveGenerator.start`. A `deliver` that raises ends the generator."""
        if self._thread is not None:
            raise RuntimeError("the generator has been started")
        self._thread = threading.Thread(target=self._work, args=(deliver,), name="live", daemon=True)
        self._thread.start()

    def submit(self, ticket: int, request: LiveRequest) -> None:
        """See `LiveGenerator.submit`."""
        self._require_answerable(request)
        guide = None if request.schema is None else self._guides.of(request.schema, request.stop_ids)
        work = LiveWork(ticket, request, guide)
        with self._wake:
            if self._closed:
                raise ModelError("the model is being unloaded", fix="ask again: it is loaded anew")
            if ticket in self._works:
                raise ValueError(f"ticket {ticket} is in use")
            self._works[ticket] = work
            self._arrived.append(work)
            self._wake.notify()

    def cancel(self, ticket: int) -> None:
        """See `LiveGenerator.cancel`."""
        with self._wake:
            if ticket in self._works:
                self._cancelled.add(ticket)
                self._wake.notify()

    def load(self) -> LiveLoad:
        """How busy it is."""
        with self._wake:
            waiting = len(self._arrived) + (len(self._session.waiting) if self._session else 0)
            return LiveLoad(len(self._works) - waiting, waiting, self._written)

    @property
    def closed(self) -> bool:
        """See `LiveGenerator.closed`."""
        return self._closed

    def close(self) -> None:
        """See `LiveGenerator.close`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._session = None

    def _require_answerable(self, request: LiveRequest) -> None:
        require_answerable(request, self.room, self._words)
        if self._bank is not None:
            self._bank.index(request.adapter)
        elif request.adapter:
            raise ModelError(f"there is no adapter {request.adapter!r}: the model was loaded without any")

    # ---- on its own thread

    @torch.inference_mode()
    def _work(self, deliver: Callable[[Sequence[TokenEvent]], None]) -> None:
        session = self._session
        assert session is not None
        if session.overlaps:
            torch.cuda.set_device(session.decoder.device)  # a thread begins on the first card
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(
                        lambda: self._arrived or self._cancelled or self._closed or session.busy
                    )
                    self._take(session)
                    closed = self._closed
                if not closed:
                    self._turn(session)
                self._deliver(session, deliver)
                if closed:
                    return
        finally:
            with self._wake:
                self._closed = True
                left, self._works = list(self._works), {}
            if left:  # an error that no request is to blame for: nobody may wait for ever
                error = ModelError("the model has ended by an error", fix="ask again: it is loaded anew")
                with suppress(Exception):
                    deliver([TokenEvent(ticket, end="failed", error=error) for ticket in left])

    def _take(self, session: LiveSession) -> None:
        """What was submitted and cancelled since the last turn."""
        session.waiting += self._arrived
        self._arrived = []
        cancelled = [self._works[ticket] for ticket in self._cancelled if ticket in self._works]
        self._cancelled = set()
        session.end(session.all() if self._closed else cancelled)

    def _turn(self, session: LiveSession) -> None:
        try:
            session.turn()
        except Exception as error:  # between the parts that fail by themselves
            session.end(session.all(), error)

    def _deliver(self, session: LiveSession, deliver: Callable[[Sequence[TokenEvent]], None]) -> None:
        events, session.events = session.events, []
        if not events:
            return
        with self._wake:
            self._written = session.written
            for event in events:
                if event.end:
                    del self._works[event.ticket]
                    self._cancelled.discard(event.ticket)  # too late; the ticket may come again
        deliver(events)


def _slots(model: PreTrainedModel, room: int) -> int:
    """As many as fit into what is free."""
    memory, prefill = None, PREFILL_TOKENS_ON_CPU
    if model.device.type == "cuda":
        prefill = PREFILL_TOKENS
        kept = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
        cached = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        free = torch.cuda.mem_get_info(model.device)[0] + cached
        memory = (0.9 * free + kept) / 2**30
    return slots_that_fit(model, MOST_SLOTS, room, prefill, memory, bytes_a_logit(0.7, 0.9))
