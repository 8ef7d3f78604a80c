"""The state of the answers in progress, a row of tensors for each slot, and one token more for the first N of them.

On a card a step is launched as one CUDA graph, captured once for each number of slots that it is often needed for: a
hundred small kernels a layer would take longer to launch than to run. What a step reads and writes therefore lies at
fixed addresses, and lengths are read on the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.generate.cache import Decode, SlotCache, decode_kernel
from tunesmith.generate.protocol import Decoding, Guide
from tunesmith.generate.sampling import choose
from tunesmith.model.attention import Attention, head_shape

_SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)
_OFTEN = 3  # steps with a number of slots before its graph is captured
_DYNAMIC = (
    "dynamic",
    "longrope",
)  # rotary tables that are made anew by the largest position: nothing to replay


class Decoder:
    """`slots` answers of at most `length` tokens, prompts included."""

    def __init__(
        self,
        model: PreTrainedModel,
        slots: int,
        length: int,
        decoding: Decoding,
        stop_ids: frozenset[int],
        guide: Guide | None,
    ) -> None:
        self.model, self.slots, self.length, self.decoding, self.guide = model, slots, length, decoding, guide
        device = self.device = model.device
        key_heads, head_dim = head_shape(model.config)
        layers = int(model.config.num_hidden_layers)
        self.cache = SlotCache(layers, slots, key_heads, length, head_dim, model.dtype, device)
        self.stop_ids = stop_ids
        self.stops = torch.tensor(sorted(stop_ids), device=device, dtype=torch.int64)
        self.states: list[Any] = []  # where each answer is in the guide's grammar
        self.range = torch.arange(slots, device=device)
        self.last = torch.zeros(slots, dtype=torch.int64, device=device)  # token to be fed next
        self.position = torch.zeros_like(self.last)  # where that token will stand
        self.count = torch.zeros_like(self.last)  # tokens chosen so far
        self.key = torch.zeros_like(self.last)  # names the answer's random numbers
        self.written = torch.zeros(slots, decoding.max_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(slots, decoding.max_tokens, dtype=torch.float64, device=device)
        self.done = torch.zeros(slots, dtype=torch.bool, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._often: Counter[int] = Counter()
        self._replays = guide is None and self._can_replay()

    def _can_replay(self) -> bool:
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        heads = int(self.model.config.num_attention_heads)
        return (
            self.device.type == "cuda"
            and decode_kernel(self.device, heads // self.cache.keys[0].shape[1]) is not None
            and rope.get("rope_type") not in _DYNAMIC
        )

    def logits(
        self, ids_T: Tensor, positions_T: Tensor, attention: Attention, wanted: Tensor | None
    ) -> Tensor:
        """[N, V] at the wanted places of the stream (all: None); nothing else goes through the output layer."""
        logits: Tensor = self.model(
            input_ids=ids_T[None],
            position_ids=positions_T[None],
            use_cache=False,
            attention=attention,
            logits_to_keep=0 if wanted is None else wanted,
        ).logits
        return logits[0]

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
        if not self._replays:
            self._step(count, lengths)
            return
        size = min((one for one in _SIZES if one >= count), default=self.slots)
        size = min(size, self.slots)
        ready = [one for one in self._graphs if size <= one < 2 * size]
        if ready:
            self._graphs[min(ready)].replay()
            return
        self._often[size] += 1
        if self._often[size] <= _OFTEN:
            self._step(size, ())
            return
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._step(size, ())
        self._graphs[size] = graph
        graph.replay()

    def _step(self, count: int, lengths: Sequence[int]) -> None:
        """Slots that are free write into their own memory, where the next prompt overwrites it."""
        positions = self.position[:count].clamp_max(self.length - 1)
        attention = Decode(self.cache, positions, lengths)
        self.choose(self.logits(self.last[:count], positions, attention, None), 0, count)

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Answers go to other slots with the first `length` tokens of their memory."""
        of, to = (torch.tensor(one, device=self.device) for one in (sources, targets))
        self.cache.move(of, to, length)
        for state in (self.last, self.position, self.count, self.key, self.written, self.logprobs, self.done):
            state[to] = state[of]
        if self.states:
            for source, target in zip(sources, targets, strict=True):
                self.states[target] = self.states[source]
