"""The state of the answers in progress, a row of tensors for each slot, and one token more for the first N of them.

`SlotState` is what all answers need; `Decoder` chooses tokens where one `Decoding` holds for all answers, and keeps
them on the device until an answer has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.generate.cache import Decode, SlotCache, decode_kernel
from tunesmith.generate.lean import forward_of
from tunesmith.generate.protocol import Decoding, Guide
from tunesmith.generate.replay import Graphs
from tunesmith.generate.sampling import choose
from tunesmith.model.attention import Attention, head_shape

_DYNAMIC = (
    "dynamic",
    "longrope",
)  # rotary tables that are made anew by the largest position: nothing to replay


class SlotState:
    """`slots` answers of at most `length` tokens, prompts included."""

    def __init__(self, model: PreTrainedModel, slots: int, length: int) -> None:
        self.model, self.slots, self.length = model, slots, length
        self.forward = forward_of(model)
        device = self.device = model.device
        key_heads, head_dim = head_shape(model.config)
        layers = int(model.config.num_hidden_layers)
        self.cache = SlotCache(layers, slots, key_heads, length, head_dim, model.dtype, device)
        self.range = torch.arange(slots, device=device)
        self.last = torch.zeros(slots, dtype=torch.int64, device=device)  # token to be fed next
        self.position = torch.zeros_like(self.last)  # where that token will stand
        self.count = torch.zeros_like(self.last)  # tokens chosen so far
        self.key = torch.zeros_like(self.last)  # names the answer's random numbers

    def _can_replay(self) -> bool:
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        heads = int(self.model.config.num_attention_heads)
        return (
            self.device.type == "cuda"
            and decode_kernel(self.device, heads // self.cache.keys[0].shape[1]) is not None
            and rope.get("rope_type") not in _DYNAMIC
        )

    def there(self, values: Sequence[Any], dtype: torch.dtype = torch.int64) -> Tensor:
        """Values of the host on the device, without waiting for it."""
        here = torch.tensor(values, dtype=dtype)
        return here.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else here

    def logits(
        self, ids_T: Tensor, positions_T: Tensor, attention: Attention, wanted: Tensor | None
    ) -> Tensor:
        """[N, V] at the wanted places of the stream (all: None); nothing else goes through the output layer."""
        return self.forward(ids_T, positions_T, attention, wanted)

    def next_logits(self, count: int, lengths: Sequence[int]) -> Tensor:
        """[count, V] behind the last token of slots 0 to count - 1.

        Slots that are free write into their own memory, where the next prompt overwrites it.
        """
        positions = self.position[:count].clamp_max(self.length - 1)
        return self.logits(self.last[:count], positions, Decode(self.cache, positions, lengths), None)

    def begin(self, first: int, lengths: Sequence[int], keys: Sequence[int]) -> None:
        """Slots from `first` on hold prompts of these lengths, and nothing of an answer; `choose` comes next."""
        rows = slice(first, first + len(keys))
        self.key[rows] = self.there(keys)
        self.position[rows] = self.there(lengths) - 1
        self.count[rows] = 0

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Answers go to other slots with the first `length` tokens of their memory."""
        of, to = self.there(sources), self.there(targets)
        self.cache.move(of, to, length)
        for state in self.rows():
            state[to] = state[of]

    def rows(self) -> tuple[Tensor, ...]:
        """All that a slot's answer takes along into another slot."""
        return self.last, self.position, self.count, self.key


class Decoder(SlotState):
    """Answers that are drawn alike, `decoding.max_tokens` long at most."""

    def __init__(
        self,
        model: PreTrainedModel,
        slots: int,
        length: int,
        decoding: Decoding,
        stop_ids: frozenset[int],
        guide: Guide | None,
    ) -> None:
        super().__init__(model, slots, length)
        self.decoding, self.guide, self.stop_ids = decoding, guide, stop_ids
        device = self.device
        self.stops = torch.tensor(sorted(stop_ids), device=device, dtype=torch.int64)
        self.states: list[Any] = []  # where each answer is in the guide's grammar
        self.written = torch.zeros(slots, decoding.max_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(slots, decoding.max_tokens, dtype=torch.float64, device=device)
        self.done = torch.zeros(slots, dtype=torch.bool, device=device)
        self._graphs: Graphs[None] = Graphs(slots)
        self._replays = guide is None and self._can_replay()

    def choose(self, logits_NV: Tensor, first: int, behind: int) -> None:
        """Writes the next token of slots first … behind - 1, and which of them have ended."""
        rows, decoding = slice(first, behind), self.decoding
        place = self.count[rows].clamp_max(decoding.max_tokens - 1)
        held = None if self.guide is None else self.guide.hold(self.states[rows], logits_NV)
        chosen, logprob = choose(logits_NV, decoding.temperature, decoding.top_p, self.key[rows], place, held)
        if self.guide is not None:
            sound = (~logprob.isnan()).tolist()  # of NaN the grammar's mask leaves anything to be chosen
            said = zip(self.states[rows], chosen.tolist(), sound, strict=True)
            kept = [(state, token) for state, token, well in said if well]
            self.guide.accept([state for state, _ in kept], [token for _, token in kept])
        self.written[self.range[rows], place] = chosen
        self.logprobs[self.range[rows], place] = logprob.double()
        self.last[rows] = chosen
        self.count[rows] += 1
        self.position[rows] += 1
        ended = (chosen[:, None] == self.stops).any(-1) | logprob.isnan()  # an answer no more: told at once
        self.done[rows] = ended | (self.count[rows] >= decoding.max_tokens)

    @torch.no_grad()
    def step(self, count: int, lengths: Sequence[int]) -> None:
        """One token more for slots 0 to count - 1. `lengths`: tokens of each that are cached."""
        if self._replays:
            self._graphs.run(count, lambda size: self._step(size, ()))
        else:
            self._step(count, lengths)

    def _step(self, count: int, lengths: Sequence[int]) -> None:
        self.choose(self.next_logits(count, lengths), 0, count)

    def begin(self, first: int, lengths: Sequence[int], keys: Sequence[int]) -> None:
        super().begin(first, lengths, keys)
        if self.guide is not None:
            self.states += [self.guide.begin() for _ in keys]

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        super().move(sources, targets, length)
        if self.states:
            for source, target in zip(sources, targets, strict=True):
                self.states[target] = self.states[source]

    def rows(self) -> tuple[Tensor, ...]:
        return *super().rows(), self.written, self.logprobs, self.done
