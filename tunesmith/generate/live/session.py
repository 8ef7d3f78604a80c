"""Requests of any time side by side: each turn admits what waits, takes a step, and tells what was written.

A turn does these in order: answers that have ended leave; a part of one long prompt goes through the model, in the last
slot; short prompts that wait go through together; all answers get a token. So nobody waits longer for a token than two
forward passes of `PREFILL_TOKENS` and a step, however long a prompt is. On a card a turn's tokens are read while the
next turn's step runs; an answer that ended by a stop id has then computed one token more, which nobody sees. A grammar
has to know the last token before the next, so turns don't overlap while one holds an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import NotFinite, OutOfRoom
from tunesmith.generate.live.decoder import LiveDecoder, foretold, likeliest, way_of
from tunesmith.generate.protocol import Guide, LiveRequest, LiveToken, TokenEvent
from tunesmith.generate.sampling import stream_key
from tunesmith.generate.session import Session

PREFILL_TOKENS = 2048  # prompt tokens in one forward pass; longer prompts go in parts
PREFILL_TOKENS_ON_CPU = 512


@dataclass(eq=False)
class LiveWork:
    """A request and how far it is."""

    ticket: int
    request: LiveRequest
    guide: Guide | None = None
    state: Any = None  # where it is in the guide's grammar
    seen: int = 0  # tokens of a long prompt that went through
    prompt: list[LiveToken] = field(default_factory=list)
    launched: int = 0  # tokens chosen, told or not
    told: int = 0
    ended: bool = False

    @property
    def spent(self) -> bool:
        """No step is needed for it any more."""
        return self.ended or self.launched >= self.request.max_tokens


@dataclass(frozen=True)
class _Launched:
    """Tokens that were chosen for some works; the figures are there once the device is `ready`."""

    works: list[LiveWork]
    figures: Tensor  # fp64, on the host: (token, ln p) for each work, then the likeliest for each that asked
    top: int
    ready: torch.cuda.Event | None


class LiveSession(Session[LiveDecoder, LiveWork]):
    """The requests in progress. `events`: what was not delivered yet."""

    def __init__(self, decoder: LiveDecoder) -> None:
        super().__init__(decoder)
        on_card = decoder.device.type == "cuda"
        self.tokens = PREFILL_TOKENS if on_card else PREFILL_TOKENS_ON_CPU
        self.overlaps = on_card  # a turn's tokens are read while the next step runs
        self.waiting: list[LiveWork] = []
        self.staged: LiveWork | None = None  # its prompt goes through in parts, in the last slot
        self.events: list[TokenEvent] = []
        self.written = 0
        self._pending: list[_Launched] = []

    @property
    def busy(self) -> bool:
        return bool(self.active or self.waiting or self.staged or self._pending)

    @property
    def free(self) -> int:
        return super().free - (self.staged is not None)

    def turn(self) -> None:
        """One token more for all, and what that needs."""
        earlier, self._pending = self._pending, []
        self._leave()
        self._prefill_part()
        self._admit()
        in_turn = not self.overlaps or any(work.guide for work in self.active)
        if in_turn:
            self._settle(earlier + self._pending)
            earlier, self._pending = [], []
            self._leave()
        if self.active:
            self._launch(self.active, self._step)
        if in_turn:
            earlier, self._pending = self._pending, []
        self._settle(earlier)

    def end(self, works: Sequence[LiveWork], error: Exception | None = None) -> None:
        """Works that end now, cancelled or for an error; their slots are free before the next step."""
        for work in works:
            if not work.ended:
                work.ended = True
                how = "cancelled" if error is None else "failed"
                self.events.append(TokenEvent(work.ticket, end=how, error=error))  # type: ignore[arg-type]
        self.waiting = [work for work in self.waiting if not work.ended]
        if self.staged is not None and self.staged.ended:
            self.staged = None

    def all(self) -> list[LiveWork]:
        """Every work that has not ended."""
        pending = [work for one in self._pending for work in one.works]
        staged = [] if self.staged is None else [self.staged]
        return [
            work for work in dict.fromkeys([*pending, *self.active, *staged, *self.waiting]) if not work.ended
        ]

    # ---- the parts of a turn

    def _launch(self, works: Sequence[LiveWork], run: Callable[[], _Launched | None]) -> None:
        """Runs a part of a turn; where it fails, the works that it was for fail."""
        concerned = list(works)
        try:
            launched = run()
        except Exception as error:
            self.end(concerned, _plain(error, self.decoder))
            return
        if launched is not None:
            self._pending.append(launched)

    def _leave(self) -> None:
        """Slots of works that are spent fall free."""
        spent = [work.spent for work in self.active]
        if any(spent):
            self._launch(self.active, lambda: self.compact(spent))
            if len(self.active) == len(spent):  # it failed, and with it all of them
                self.compact([True] * len(spent))

    def _prefill_part(self) -> None:
        """The next part of a prompt that is too long for one forward pass."""
        if self.staged is None and self.free:
            self.staged = next((work for work in self.waiting if self._long(work)), None)
            if self.staged is not None:
                self.waiting.remove(self.staged)
        if (work := self.staged) is not None:
            self._launch([work], lambda: self._part_of(work))

    def _long(self, work: LiveWork) -> bool:
        return len(work.request.prompt) > self.tokens

    def _part_of(self, work: LiveWork) -> _Launched | None:
        decoder, prompt, slot = self.decoder, work.request.prompt, self.slots - 1
        if not work.seen:
            decoder.assign(slot, [work.request])
            decoder.position[slot] = len(prompt)  # a graph of more slots than are needed writes behind it
        part = prompt[work.seen : work.seen + self.tokens]
        logits = self.prefill_chunk(slot, part, work.seen, whole=work.request.prompt_logprobs)
        if work.request.prompt_logprobs:
            self._tell_prompt(work, logits, work.seen)
        work.seen += len(part)
        if work.seen < len(prompt):
            return None
        self.staged = None
        if (target := len(self.active)) != slot and work.request.max_tokens:
            decoder.move([slot], [target], len(prompt))
        return self._begin_answers([work], logits[-1:])

    def _admit(self) -> None:
        """Prompts that wait go through together, within the budget of tokens: those that want the same of it."""
        works: list[LiveWork] = []
        tokens = 0
        for work in self.waiting:
            if self._long(work):
                continue
            tokens += len(work.request.prompt)
            if (
                tokens > self.tokens
                or len(works) >= self.free
                or (works and _wants(work) != _wants(works[0]))
            ):
                break
            works.append(work)
        if works:
            kept = set(works)
            self.waiting = [work for work in self.waiting if work not in kept]
            self._launch(works, lambda: self._prompts_of(works))

    def _prompts_of(self, works: list[LiveWork]) -> _Launched | None:
        requests = [work.request for work in works]
        whole = requests[0].prompt_logprobs
        self.decoder.assign(len(self.active), requests)
        logits = self.prefill([one.prompt for one in requests], whole=whole)
        if whole:
            each = logits.split_with_sizes([len(one.prompt) for one in requests])
            for work, own in zip(works, each, strict=True):
                self._tell_prompt(work, own, 0)
            logits = torch.cat([own[-1:] for own in each])
        return self._begin_answers(works, logits)

    def _tell_prompt(self, work: LiveWork, logits_TV: Tensor, before: int) -> None:
        """What the model foretold of the tokens behind places `before` and on of the prompt."""
        prompt, top = work.request.prompt, work.request.top
        if not before:
            work.prompt.append(LiveToken(int(prompt[0]), math.nan))
        ids = list(prompt[before + 1 : before + 1 + len(logits_TV)])
        if ids:
            logprobs, tops = foretold(logits_TV[: len(ids)], self.decoder.there(ids), top)
            if any(map(math.isnan, logprobs)):
                self.end([work], _not_finite())
                self.decoder.cache.cleanse()
                return
            work.prompt += [
                LiveToken(int(one), logprob, _pairs(likely))
                for one, logprob, likely in zip(ids, logprobs, tops, strict=True)
            ]

    def _begin_answers(self, works: list[LiveWork], logits_NV: Tensor) -> _Launched | None:
        """Prompts that have gone through: their answers' first tokens."""
        only = not works[0].request.max_tokens
        for work in works:
            if not work.ended and (work.prompt or only):
                self.events.append(
                    TokenEvent(work.ticket, None, tuple(work.prompt), "length" if only else "")
                )
                work.prompt, work.ended = [], only
        if only:
            return None
        keys = [stream_key(work.request.seed, 0, work.request.sample) for work in works]
        rows = self.begin(works, [len(work.request.prompt) for work in works], keys)
        for work in works:
            work.state = None if work.guide is None else work.guide.begin()
        return self._choose(works, rows, logits_NV)

    def _step(self) -> _Launched:
        works = list(self.active)
        is_open = any(work.guide or work.request.top for work in works)
        way = None if is_open else way_of([work.request for work in works])
        logits_NV = self.decoder.step(len(works), self.step(), way)
        rows = slice(0, len(works))
        return self._written(works, rows, None) if logits_NV is None else self._choose(works, rows, logits_NV)

    @torch.no_grad()
    def _choose(self, works: list[LiveWork], rows: slice, logits_NV: Tensor) -> _Launched:
        held_NV = None
        if any(work.guide for work in works):
            held_NV = logits_NV.clone()
            for guide in dict.fromkeys(work.guide for work in works if work.guide):
                self._hold(guide, works, logits_NV, held_NV)
        self.decoder.choose(logits_NV, rows, way_of([work.request for work in works]), held_NV)
        return self._written(works, rows, logits_NV)

    def _hold(self, guide: Guide, works: list[LiveWork], logits_NV: Tensor, held_NV: Tensor) -> None:
        """Those of the works that this grammar holds; one whose state is broken fails alone."""
        places = [n for n, work in enumerate(works) if work.guide is guide and not work.spent]
        if not places:
            return
        try:
            held_NV[places] = guide.hold([works[n].state for n in places], logits_NV[places])
        except Exception:
            for n in places:
                try:
                    held_NV[n : n + 1] = guide.hold([works[n].state], logits_NV[n : n + 1])
                except Exception as error:
                    self.end([works[n]], error)

    def _written(self, works: list[LiveWork], rows: slice, logits_NV: Tensor | None) -> _Launched:
        """The tokens just chosen, on their way to the host in one transfer."""
        figures = self.decoder.told[rows].flatten()
        asked = [n for n, work in enumerate(works) if work.request.top]
        top = max((work.request.top for work in works), default=0)
        if asked:
            assert logits_NV is not None
            figures = torch.cat([figures, likeliest(logits_NV[asked], top).flatten()])
        for work in works:
            work.launched += 1
        if figures.device.type != "cuda":
            return _Launched(works, figures.clone(), top, None)
        here = figures.to("cpu", non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's is untyped
        ready.record()
        return _Launched(works, here, top, ready)

    # ---- what was written

    def _settle(self, launched: Sequence[_Launched]) -> None:
        for one in launched:
            try:
                self._tell(one)
            except Exception as error:
                self.end(one.works, _plain(error, self.decoder))

    def _tell(self, one: _Launched) -> None:
        if one.ready is not None:
            one.ready.synchronize()
        count = len(one.works)
        pairs = one.figures[: 2 * count].view(count, 2).tolist()
        tops = iter(one.figures[2 * count :].view(-1, 2, one.top).tolist() if one.top else ())
        for work, (token, logprob) in zip(one.works, pairs, strict=True):
            likely = _pairs(next(tops), work.request.top) if work.request.top else ()
            if work.ended:
                continue
            if math.isnan(logprob):
                self.end([work], _not_finite())
                self.decoder.cache.cleanse()
                continue
            self._tell_token(work, LiveToken(int(token), logprob, likely))

    def _tell_token(self, work: LiveWork, token: LiveToken) -> None:
        if work.guide is not None:
            try:
                work.guide.accept([work.state], [token.id])
            except Exception as error:
                self.end([work], error)
                return
        work.told += 1
        self.written += 1
        stopped = token.id in work.request.stop_ids
        work.ended = stopped or work.told >= work.request.max_tokens
        end = "stop" if stopped else "length" if work.ended else ""
        self.events.append(TokenEvent(work.ticket, token, (), end))  # type: ignore[arg-type]


def _wants(work: LiveWork) -> tuple[bool, bool]:
    return work.request.prompt_logprobs, work.request.max_tokens > 0


def _pairs(likely: Sequence[Sequence[float]], count: int | None = None) -> tuple[tuple[int, float], ...]:
    ids, logprobs = likely
    return tuple((int(one), logprob) for one, logprob in zip(ids[:count], logprobs[:count], strict=True))


def _not_finite() -> NotFinite:
    return NotFinite(
        "the model's output for this prompt is not finite",
        fix="serve in bfloat16 or float32; float16 overflows on some models",
    )


def _plain(error: Exception, decoder: LiveDecoder) -> Exception:
    """A lack of memory as an error that says what to do."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    torch.cuda.empty_cache()
    return OutOfRoom(
        f"no memory left for a step beside {decoder.slots} slots of {decoder.length} tokens",
        fix="serve with fewer slots or a shorter context",
    )
