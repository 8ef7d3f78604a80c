"""The generator: answers side by side in the slots of a static cache, new prompts admitted as slots fall free.

The answers in progress always fill slots 0 to N-1: when one ends, the last moves into its place, so that a step
works on exactly N rows and reads the cache as far as the longest of them. A step synchronises with the device once, to
learn which answers ended.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, NotFinite
from tunesmith.generate.cache import Decode, Prefill, SlotCache
from tunesmith.generate.identity import model_key
from tunesmith.generate.protocol import Decoding, Generated, Guide
from tunesmith.generate.sampling import choose, stream_key
from tunesmith.model.attention import ATTENTION, Attention, Packed, head_shape

ADMIT_SHARE = 8  # prompts are admitted once this part of the slots is free
PREFILL_TOKENS = 8192  # most prompt tokens in one forward pass; a longer prompt goes alone


@dataclass(frozen=True)
class _Job:
    """An answer to write."""

    prompt: Sequence[int]
    index: int
    sample: int


class SlotGenerator:
    """Generates with a model that was built on our attention; dropout is off meanwhile. See `generate.protocol`.

    `max_length` bounds a prompt and its answer together; without it the model's positions do. Memory is taken for
    `slots` times the longest prompt plus `max_tokens` of the call.
    """

    def __init__(
        self, model: PreTrainedModel, slots: int | Literal["auto"] = 16, max_length: int | None = None
    ) -> None:
        if model.config._attn_implementation != ATTENTION:
            raise TypeError(
                f"the model attends by {model.config._attn_implementation!r}, not by {ATTENTION!r}"
            )
        self.model, self.slots = model, 16 if slots == "auto" else slots
        positions = int(model.config.max_position_embeddings)
        self.room = positions if max_length is None else min(max_length, positions)

    @property
    def key(self) -> str:
        """Names the weights, as they answer now."""
        return model_key(self.model)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        stop_ids: frozenset[int],
        done: AbstractSet[tuple[int, int]] = frozenset(),
        guide: Guide | None = None,
    ) -> Iterator[Generated]:
        """All answers but those (index, sample) in `done`, in the order in which they are finished.

        ModelError where a prompt leaves no room.
        """
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {index} is empty")
            if len(prompt) + decoding.max_tokens > self.room:
                raise ModelError(
                    f"prompt {index} has {len(prompt)} tokens, with {decoding.max_tokens} for the answer more than "
                    f"the {self.room} that there is room for",
                    fix="shorten the prompt, or lower evaluate.decoding.max_tokens",
                )
        numbers = ((i, sample) for i in range(len(prompts)) for sample in range(decoding.samples))
        jobs = [_Job(prompts[i], i, sample) for i, sample in numbers if (i, sample) not in done]
        if not jobs:
            return
        jobs.sort(key=lambda job: -len(job.prompt))  # the cache is read less far with every admission
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield from _Session(self.model, min(self.slots, len(jobs)), jobs, decoding, stop_ids, guide).run()
        finally:
            for module in training:
                module.training = True


class _Session:
    """One call of `generate`: the cache, and the state of each slot in tensors of length `slots`."""

    def __init__(
        self,
        model: PreTrainedModel,
        slots: int,
        waiting: list[_Job],
        decoding: Decoding,
        stop_ids: frozenset[int],
        guide: Guide | None,
    ) -> None:
        self.model, self.slots, self.waiting, self.decoding = model, slots, deque(waiting), decoding
        self.stop_ids, self.guide = stop_ids, guide
        device = self.device = model.device
        key_heads, head_dim = head_shape(model.config)
        length = len(waiting[0].prompt) + decoding.max_tokens
        layers = int(model.config.num_hidden_layers)
        self.cache = SlotCache(layers, slots, key_heads, length, head_dim, model.dtype, device)
        self.stops = torch.tensor(sorted(stop_ids), device=device, dtype=torch.int64)
        self.active: list[_Job] = []  # slot n works on active[n]
        self.begun: list[int] = []  # the step at which it was admitted, less its prompt's length
        self.states: list[Any] = []  # where slot n's answer is in the guide's grammar
        self.step = 0
        self.range = torch.arange(slots, device=device)
        self.last = torch.zeros(slots, dtype=torch.int64, device=device)  # token to be fed next
        self.position = torch.zeros_like(self.last)  # where that token will stand
        self.count = torch.zeros_like(self.last)  # tokens chosen so far
        self.key = torch.zeros_like(self.last)  # names the answer's random numbers
        self.written = torch.zeros(slots, decoding.max_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(slots, decoding.max_tokens, dtype=torch.float64, device=device)

    def run(self) -> Iterator[Generated]:
        while self.active or self.waiting:
            while self.waiting and self._worth_admitting():
                yield from self._collect(self._admit())
            if self.active:
                yield from self._collect(self._advance())

    def _worth_admitting(self) -> bool:
        """A forward pass for one prompt alone is dear on a card: a few slots are let fall free first."""
        free = self.slots - len(self.active)
        return free >= min(max(1, self.slots // ADMIT_SHARE), len(self.waiting))

    @torch.no_grad()
    def _admit(self) -> Tensor:
        """Prefills waiting prompts into all free slots, within the token budget; which of all slots are done."""
        first, tokens = len(self.active), 0
        jobs: list[_Job] = []
        while self.waiting and first + len(jobs) < self.slots:
            tokens += len(self.waiting[0].prompt)
            if jobs and tokens > PREFILL_TOKENS:
                break
            jobs.append(self.waiting.popleft())
        lengths = [len(job.prompt) for job in jobs]
        fresh = slice(first, first + len(jobs))
        ids_T = torch.tensor([token for job in jobs for token in job.prompt], device=self.device)
        lengths_N = torch.tensor(lengths, device=self.device)
        ends_N = lengths_N.cumsum(0)
        positions_T = torch.cat([torch.arange(n, device=self.device) for n in lengths])
        slots_T = self.range[fresh].repeat_interleave(lengths_N, output_size=len(ids_T))
        edges = torch.cat([ends_N.new_zeros(1), ends_N]).int()
        attention = Prefill(self.cache, Packed(edges, max(lengths)), slots_T, positions_T)
        logits_NV = self._logits(ids_T, positions_T, attention, ends_N - 1)
        seed = self.decoding.seed
        keys = [stream_key(seed, job.index, job.sample) for job in jobs]
        self.key[fresh] = torch.tensor(keys, device=self.device)
        self.position[fresh] = lengths_N - 1
        self.count[fresh] = 0
        if self.guide is not None:
            self.states += [self.guide.begin() for _ in jobs]
        self.active += jobs
        self.begun += [self.step - n for n in lengths]
        return self._choose(logits_NV, fresh)

    @torch.no_grad()
    def _advance(self) -> Tensor:
        """One token more for every answer in progress; which slots are done."""
        active = slice(0, len(self.active))
        longest = self.step - min(self.begun) + 1
        self.step += 1
        attention = Decode(self.cache, self.position[active], longest)
        logits_NV = self._logits(self.last[active], self.position[active], attention, None)
        return self._choose(logits_NV, active)

    def _logits(
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

    def _choose(self, logits_NV: Tensor, rows: slice) -> Tensor:
        """Writes the next token of these slots; bool [slots in use], True where the answer has ended."""
        decoding, place = self.decoding, self.count[rows]
        held = None if self.guide is None else self.guide.hold(self.states[rows], logits_NV)
        chosen, logprob = choose(logits_NV, decoding.temperature, decoding.top_p, self.key[rows], place, held)
        if self.guide is not None:
            self.guide.accept(self.states[rows], chosen.tolist())
        self.written[self.range[rows], place] = chosen
        self.logprobs[self.range[rows], place] = logprob.double()
        self.last[rows] = chosen
        self.count[rows] += 1
        self.position[rows] += 1
        used = slice(0, len(self.active))
        return torch.isin(self.last[used], self.stops) | (self.count[used] >= decoding.max_tokens)

    def _collect(self, done: Tensor) -> Iterator[Generated]:
        """Gives the answers that have ended and moves the last ones into their slots."""
        flags = done.tolist()
        ended = [slot for slot, flag in enumerate(flags) if flag]
        if not ended:
            return
        counts, written = self.count[ended].tolist(), self.written[ended].tolist()
        results = []
        for slot, count, ids, each in zip(ended, counts, written, self.logprobs[ended].tolist(), strict=True):
            job, logprob = self.active[slot], math.fsum(each[:count])
            if math.isnan(logprob):
                raise NotFinite(
                    f"the model's output for prompt {job.index} is not finite",
                    fix="answer in model.dtype: bfloat16 or float32; float16 overflows on some models",
                )
            stopped = ids[count - 1] in self.stop_ids
            results.append(
                Generated(job.index, job.sample, ids[: count - stopped], stopped, logprob, each[:count])
            )
        self._compact(flags)
        yield from results

    def _compact(self, flags: list[bool]) -> None:
        """Keeps the answers in progress in slots 0 to N-1."""
        left = flags.count(False)
        targets = [slot for slot in range(left) if flags[slot]]
        sources = [slot for slot in range(left, len(flags)) if not flags[slot]]
        if sources:
            to, of = torch.tensor(targets, device=self.device), torch.tensor(sources, device=self.device)
            self.cache.move(of, to, self.step - min(self.begun[slot] for slot in sources))
            for state in (self.last, self.position, self.count, self.key, self.logprobs, self.written):
                state[to] = state[of]
            for target, source in zip(targets, sources, strict=True):
                for listed in (self.active, self.begun, self.states):
                    if listed:
                        listed[target] = listed[source]
        del self.active[left:], self.begun[left:], self.states[left:]
