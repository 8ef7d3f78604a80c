"""Answers side by side in the slots of a GGUF model: the work that the batch and the live generator share.

A step reads some of the prompts that wait, one prompt a call, and writes one token for each answer in progress, all in
one call. So a prompt's logits never depend on its neighbours; those of an answer do by what llama.cpp's products round
differently at another batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith.errors import NotFinite
from tunesmith.generate.llama_cpp.model import BATCH, LlamaModel
from tunesmith.generate.protocol import Guide, LiveToken, TokenEvent
from tunesmith.generate.sampling import choose, choose_each

NAN = float("nan")
End = Literal["", "stop", "length", "cancelled", "failed"]


@dataclass(eq=False)
class Writing:
    """One answer that is asked for or in progress."""

    ticket: int
    prompt: Sequence[int]
    max_tokens: int
    stop_ids: frozenset[int]
    temperature: float
    top_p: float
    stream: int
    """Of `sampling.stream_key`."""
    top: int = 0
    prompt_logprobs: bool = False
    guide: Guide | None = None
    slot: int = -1
    read: int = 0
    """Tokens of the prompt whose keys and values are there."""
    count: int = 0
    """Tokens written."""
    last: int = -1
    state: Any = None
    """The guide's."""
    told: list[LiveToken] = field(default_factory=list)
    """Of the prompt."""


class LlamaSlots:
    """Who works in which slot of `model`, which has been claimed. Used on one thread."""

    def __init__(self, model: LlamaModel) -> None:
        self.model = model
        self._free = list(range(model.slots))[::-1]
        self._soiled = False  # slots hold what is not finite: not to be used before all is cleared
        self._reading: list[Writing] = []  # in the order in which they came
        self._writing: list[Writing] = []

    @property
    def free(self) -> int:
        """Slots that nobody works in."""
        return len(self._free)

    @property
    def active(self) -> list[Writing]:
        """All that are at work."""
        return [*self._writing, *self._reading]

    def admit(self, one: Writing) -> None:
        """Gives it a free slot."""
        one.slot = self._free.pop()
        if one.guide is not None:
            one.state = one.guide.begin()
        self._reading.append(one)

    def drop(self, one: Writing, *, soiled: bool = False) -> None:
        """Ends it; its slot is free. Soiled: once nobody is at work, since llama.cpp clears all memory or none.

        What a later answer in this slot does not see is multiplied by zero, and NaN times zero is NaN.
        """
        (self._writing if one in self._writing else self._reading).remove(one)
        self._soiled |= soiled
        if self._soiled and not self.active:
            self.drop_all()
            return
        self.model.forget(one.slot)
        if not soiled:
            self._free.append(one.slot)

    def drop_all(self) -> None:
        """Ends all, whatever state a failed step has left the model in."""
        self._reading, self._writing, self._soiled = [], [], False
        self._free = list(range(self.model.slots))[::-1]
        self.model.forget_all()

    @torch.no_grad()
    def step(self) -> list[TokenEvent]:
        """One token more for each answer in progress, and the first ones of prompts that were read to their end."""
        writing = list(self._writing)
        events = self._read()
        if writing:
            positions = [len(one.prompt) + one.count - 1 for one in writing]
            slots = [one.slot for one in writing]
            logits_NV = self.model.decode(
                [one.last for one in writing], positions, slots, [True] * len(writing)
            )
            events += self._choose(writing, logits_NV)
        return events

    def _read(self) -> list[TokenEvent]:
        events, left = [], BATCH
        while self._reading and left > 0:
            one = self._reading[0]
            part = range(one.read, min(one.read + left, len(one.prompt)))
            whole = part.stop == len(one.prompt)
            wanted = [one.prompt_logprobs] * len(part)
            wanted[-1] |= whole
            logits_NV = self.model.decode(
                one.prompt[part.start : part.stop], part, [one.slot] * len(part), wanted
            )
            if one.prompt_logprobs:
                self._tell_prompt(one, part, logits_NV)
            one.read, left = part.stop, left - len(part)
            if whole:
                events += self._first(one, logits_NV[-1:])
        return events

    def _first(self, one: Writing, logits_1V: Tensor) -> list[TokenEvent]:
        """Its prompt is read: its first token."""
        told = tuple(one.told)
        if any(math.isnan(token.logprob) for token in told[1:]):
            self.drop(one, soiled=True)
            return [TokenEvent(one.ticket, end="failed", error=self._not_finite())]
        if one.max_tokens == 0:
            self.drop(one)
            return [TokenEvent(one.ticket, prompt=told, end="length")]
        self._reading.remove(one)
        self._writing.append(one)
        (event,) = self._choose([one], logits_1V)
        if told:
            return [TokenEvent(one.ticket, event.token, told, event.end, event.error)]
        return [event]

    def _tell_prompt(self, one: Writing, part: range, logits_NV: Tensor) -> None:
        """ln p of the prompt's tokens behind the places of `part`, and of its first token, which has none."""
        if part.start == 0:
            one.told.append(LiveToken(int(one.prompt[0]), NAN))
        following = one.prompt[part.start + 1 : part.stop + 1]
        logits_NV = logits_NV[: len(following)]
        tops = _tops(logits_NV, one.top)
        next_N1 = torch.tensor([int(token) for token in following])[:, None]
        each = (logits_NV.gather(1, next_N1)[:, 0] - logits_NV.logsumexp(-1)).tolist()
        one.told += [
            LiveToken(int(token), logprob, top)
            for token, logprob, top in zip(following, each, tops, strict=True)
        ]

    def _choose(self, rows: list[Writing], logits_NV: Tensor) -> list[TokenEvent]:
        held_NV, refused = _held(rows, logits_NV)
        tokens, logprobs = _chosen(rows, logits_NV, held_NV)
        tops = _tops(logits_NV, max(one.top for one in rows))
        events = []
        for row, (one, token, logprob, top) in enumerate(zip(rows, tokens, logprobs, tops, strict=True)):
            error = refused.get(row) or (
                self._not_finite() if math.isnan(logprob) else _unaccepted(one, token)
            )
            if error is not None:
                self.drop(one, soiled=math.isnan(logprob))
                events.append(TokenEvent(one.ticket, end="failed", error=error))
                continue
            one.last, one.count = token, one.count + 1
            end: End = "stop" if token in one.stop_ids else "length" if one.count >= one.max_tokens else ""
            if end:
                self.drop(one)
            events.append(TokenEvent(one.ticket, LiveToken(token, logprob, top[: one.top]), end=end))
        return events

    def _not_finite(self) -> NotFinite:
        return NotFinite(
            "the model's output is not finite",
            where=str(self.model.path),
            fix="export the model in another type: F16 overflows on some models, BF16 does not",
        )


def _unaccepted(one: Writing, token: int) -> Exception | None:
    """Why its grammar can't go on with this token: that is one answer's end, and nobody else's."""
    if one.guide is not None:
        try:
            one.guide.accept([one.state], [token])
        except Exception as error:
            return error
    return None


def _held(rows: Sequence[Writing], logits_NV: Tensor) -> tuple[Tensor | None, dict[int, Exception]]:
    """The logits with -inf at what grammars forbid (None where no answer has one), and the rows whose grammar fails."""
    by_guide: dict[int, list[int]] = {}
    for row, one in enumerate(rows):
        if one.guide is not None:
            by_guide.setdefault(id(one.guide), []).append(row)
    refused: dict[int, Exception] = {}
    if not by_guide:
        return None, refused
    held_NV = logits_NV.clone()
    for members in by_guide.values():
        guide = rows[members[0]].guide
        assert guide is not None
        try:
            held_NV[members] = guide.hold([rows[row].state for row in members], logits_NV[members])
        except Exception:  # one answer's grammar has failed: the others go on
            for row in members:
                try:
                    held_NV[row] = guide.hold([rows[row].state], logits_NV[row : row + 1])[0]
                except Exception as error:
                    refused[row] = error
    return held_NV, refused


def _chosen(
    rows: Sequence[Writing], logits_NV: Tensor, held_NV: Tensor | None
) -> tuple[list[int], list[float]]:
    """Each answer's next token and its ln p; those that take the likeliest need no sort."""
    tokens, logprobs = [0] * len(rows), [0.0] * len(rows)
    greedy = [row for row, one in enumerate(rows) if one.temperature == 0]
    drawn = [row for row, one in enumerate(rows) if one.temperature != 0]
    for members in (greedy, drawn):
        if not members:
            continue
        logits, held = logits_NV[members], None if held_NV is None else held_NV[members]
        keys = torch.tensor([rows[row].stream for row in members])
        places = torch.tensor([rows[row].count for row in members])
        if members is greedy:
            token_N, logprob_N = choose(logits, 0.0, 1.0, keys, places, held)
        else:
            heat = torch.tensor([rows[row].temperature for row in members])
            top_p = torch.tensor([rows[row].top_p for row in members])
            token_N, logprob_N = choose_each(logits, heat, top_p, keys, places, held)
        for row, token, logprob in zip(members, token_N.tolist(), logprob_N.tolist(), strict=True):
            tokens[row], logprobs[row] = token, logprob
    return tokens, logprobs


def _tops(logits_NV: Tensor, most: int) -> list[tuple[tuple[int, float], ...]]:
    """The `most` likeliest tokens of each row with their ln p."""
    if not most:
        return [()] * len(logits_NV)
    values_NK, ids_NK = logits_NV.topk(min(most, logits_NV.shape[1]), dim=-1)
    values_NK = values_NK - logits_NV.logsumexp(-1, keepdim=True)
    return [
        tuple(zip(ids, values, strict=True))
        for ids, values in zip(ids_NK.tolist(), values_NK.tolist(), strict=True)
    ]
