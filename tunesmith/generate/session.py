"""Who works in which slot: the answers in progress always fill slots 0 to N-1.

When an answer ends, the last one moves into its place, so that a step works on exactly N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tunesmith.generate.cache import Chunk, Prefill
from tunesmith.generate.decoder import SlotState
from tunesmith.model.attention import Packed

State = TypeVar("State", bound=SlotState)
Work = TypeVar("Work")


class Session(Generic[State, Work]):
    """The works in the slots of a decoder: admitted, counted and moved together."""

    def __init__(self, decoder: State) -> None:
        self.decoder, self.slots = decoder, decoder.slots
        self.active: list[Work] = []  # slot n works on active[n]
        self.begun: list[int] = []  # the step at which it was admitted, less its prompt's length
        self.steps = 0

    @property
    def free(self) -> int:
        return self.slots - len(self.active)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]], before: int = 0, whole: bool = False) -> Tensor:
        """Prompts go through the model into the slots behind those that work: logits behind each, [N, V].

        before: tokens that all of them begin with, which `keep_prefix` has kept. whole: logits behind every token
        of every prompt, in the stream's order.
        """
        decoder, device, first = self.decoder, self.decoder.device, len(self.active)
        lengths = [len(prompt) - before for prompt in prompts]
        fresh = slice(first, first + len(prompts))
        ids_T = decoder.there([token for prompt in prompts for token in prompt[before:]])
        lengths_N = decoder.there(lengths)
        ends_N = lengths_N.cumsum(0)
        positions_T = torch.cat([torch.arange(before, before + n, device=device) for n in lengths])
        slots_T = decoder.range[fresh].repeat_interleave(lengths_N, output_size=len(ids_T))
        edges = torch.cat([ends_N.new_zeros(1), ends_N]).int()
        if before:
            decoder.cache.begin_with_prefix(fresh)
        attention = Prefill(decoder.cache, Packed(edges, max(lengths)), slots_T, positions_T, before)
        return decoder.logits(ids_T, positions_T, attention, None if whole else ends_N - 1)

    @torch.no_grad()
    def prefill_shared(self, prompt: Sequence[int]) -> None:
        """What all prompts begin with goes through the model once, in slot 0."""
        self.prefill([prompt])
        self.decoder.cache.keep_prefix(len(prompt))

    @torch.no_grad()
    def prefill_chunk(self, slot: int, ids: Sequence[int], before: int, whole: bool = False) -> Tensor:
        """Tokens `before` and on of a prompt that `slot` has up to there: logits behind the last, or behind all."""
        decoder = self.decoder
        positions_T = torch.arange(before, before + len(ids), device=decoder.device)
        slots_T = torch.full_like(positions_T, slot)
        attention = Chunk(decoder.cache, slot, before, slots_T, positions_T)
        wanted = None if whole else decoder.range.new_full((1,), len(ids) - 1)
        return decoder.logits(decoder.there(ids), positions_T, attention, wanted)

    def begin(self, works: Sequence[Work], lengths: Sequence[int], keys: Sequence[int]) -> slice:
        """Works whose prompts have gone through go on as answers: their slots, whose first tokens are to be chosen."""
        first = len(self.active)
        self.decoder.begin(first, lengths, keys)
        self.active += works
        self.begun += [self.steps - length for length in lengths]
        return slice(first, len(self.active))

    def step(self) -> list[int]:
        """A step begins: tokens that each slot has in the cache before it."""
        lengths = [self.steps - begun for begun in self.begun]
        self.steps += 1
        return lengths

    @torch.no_grad()
    def compact(self, ended: Sequence[bool]) -> None:
        """Keeps the answers in progress in slots 0 to N-1."""
        left = ended.count(False)
        targets = [slot for slot in range(left) if ended[slot]]
        sources = [slot for slot in range(left, len(ended)) if not ended[slot]]
        if sources:
            self.decoder.move(sources, targets, self.steps - min(self.begun[slot] for slot in sources))
            for target, source in zip(targets, sources, strict=True):
                self.active[target], self.begun[target] = self.active[source], self.begun[source]
        del self.active[left:], self.begun[left:]
