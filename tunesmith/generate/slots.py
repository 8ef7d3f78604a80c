"""The generator: answers side by side in the slots of a static cache, new prompts admitted as slots fall free.

The answers in progress always fill slots 0 to N-1: when one ends, the last moves into its place, so that a step
works on exactly N rows. A step synchronises with the device once, to learn which answers ended. What all prompts begin
with (an instruction, examples) goes through the model once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, NotFinite
from tunesmith.generate.cache import Prefill
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.identity import model_key
from tunesmith.generate.protocol import Decoding, Generated, Guide
from tunesmith.generate.room import slots_that_fit
from tunesmith.generate.sampling import bytes_a_logit, stream_key
from tunesmith.model.attention import ATTENTION, Packed
from tunesmith.recipe import Recipe

ADMIT_SHARE = 8  # prompts are admitted once this part of the slots is free
PREFILL_TOKENS = 8192  # most prompt tokens in one forward pass; a longer prompt goes alone
PREFILL_TOKENS_ON_CPU = 2048  # what lies between the layers then stays near the core
SHARED = 8  # tokens at the head of all prompts from which on they are computed once


@dataclass(frozen=True)
class _Job:
    """An answer to write."""

    prompt: Sequence[int]
    index: int
    sample: int


class SlotGenerator:
    """Generates with a model that was built on our attention; dropout is off meanwhile. See `generate.protocol`.

    `max_length` bounds a prompt and its answer together; without it the model's positions do. Memory is taken for
    `slots` times the longest prompt plus `max_tokens` of the call; auto: as many as the card (or `memory`, GiB) takes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        slots: int | Literal["auto"] = "auto",
        max_length: int | None = None,
        memory: float | None = None,
    ) -> None:
        if model.config._attn_implementation != ATTENTION:
            raise TypeError(
                f"the model attends by {model.config._attn_implementation!r}, not by {ATTENTION!r}"
            )
        self.model, self.memory = model, memory
        self.slots: int | Literal["auto"] = slots
        positions = int(model.config.max_position_embeddings)
        self.room = positions if max_length is None else min(max_length, positions)

    @classmethod
    def of(cls, model: PreTrainedModel, recipe: Recipe) -> SlotGenerator:
        """As a recipe asks: `evaluate.batch` answers side by side, within `train.memory`."""
        memory = recipe.train.memory
        return cls(model, slots=recipe.evaluate.batch, memory=None if memory == "auto" else float(memory))

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
        length = len(jobs[0].prompt) + decoding.max_tokens
        if isinstance(self.slots, int):
            slots = min(self.slots, len(jobs))
        else:
            logit = bytes_a_logit(decoding.temperature, decoding.top_p)
            slots = slots_that_fit(self.model, len(jobs), length, PREFILL_TOKENS, self.memory, logit)
        try:
            decoder = Decoder(self.model, slots, length, decoding, stop_ids, guide)
            yield from _Session(decoder, jobs).run()
        finally:
            for module in training:
                module.training = True


class _Session:
    """One call of `generate`: who works in which slot."""

    def __init__(self, decoder: Decoder, waiting: list[_Job]) -> None:
        self.decoder, self.slots, self.waiting = decoder, decoder.slots, deque(waiting)
        self.active: list[_Job] = []  # slot n works on active[n]
        self.begun: list[int] = []  # the step at which it was admitted, less its prompt's length
        self.step = 0
        self.before = _shared([job.prompt for job in waiting])
        self.tokens = PREFILL_TOKENS if decoder.device.type == "cuda" else PREFILL_TOKENS_ON_CPU

    def run(self) -> Iterator[Generated]:
        if self.before:
            self._prefill_shared(self.waiting[0].prompt[: self.before])
        while self.active or self.waiting:
            while self.waiting and self._worth_admitting():
                self._admit()
                yield from self._collect()
            if self.active:
                lengths = [self.step - begun for begun in self.begun]
                self.step += 1
                self.decoder.step(len(self.active), lengths)
                yield from self._collect()

    def _worth_admitting(self) -> bool:
        """A forward pass for one prompt alone is dear on a card: a few slots are let fall free first."""
        free = self.slots - len(self.active)
        return free >= min(max(1, self.slots // ADMIT_SHARE), len(self.waiting))

    @torch.no_grad()
    def _prefill_shared(self, prompt: Sequence[int]) -> None:
        """What all prompts begin with goes through the model once, in slot 0."""
        decoder, count = self.decoder, len(prompt)
        positions_T = torch.arange(count, device=decoder.device)
        edges = torch.tensor([0, count], device=decoder.device, dtype=torch.int32)
        attention = Prefill(decoder.cache, Packed(edges, count), torch.zeros_like(positions_T), positions_T)
        ids_T = torch.tensor(list(prompt), device=decoder.device)
        decoder.logits(ids_T, positions_T, attention, positions_T[-1:])
        decoder.cache.keep_prefix(count)

    @torch.no_grad()
    def _admit(self) -> None:
        """Prefills waiting prompts into free slots, within the token budget, and chooses their first tokens."""
        decoder, device, before = self.decoder, self.decoder.device, self.before
        first, tokens = len(self.active), 0
        jobs: list[_Job] = []
        while self.waiting and first + len(jobs) < self.slots:
            tokens += len(self.waiting[0].prompt) - before
            if jobs and tokens > self.tokens:
                break
            jobs.append(self.waiting.popleft())
        lengths = [len(job.prompt) - before for job in jobs]
        fresh = slice(first, first + len(jobs))
        ids_T = torch.tensor([token for job in jobs for token in job.prompt[before:]], device=device)
        lengths_N = torch.tensor(lengths, device=device)
        ends_N = lengths_N.cumsum(0)
        positions_T = torch.cat([torch.arange(before, before + n, device=device) for n in lengths])
        slots_T = decoder.range[fresh].repeat_interleave(lengths_N, output_size=len(ids_T))
        edges = torch.cat([ends_N.new_zeros(1), ends_N]).int()
        if before:
            decoder.cache.begin_with_prefix(fresh)
        attention = Prefill(decoder.cache, Packed(edges, max(lengths)), slots_T, positions_T, before)
        logits_NV = decoder.logits(ids_T, positions_T, attention, ends_N - 1)
        keys = [stream_key(decoder.decoding.seed, job.index, job.sample) for job in jobs]
        decoder.key[fresh] = torch.tensor(keys, device=device)
        decoder.position[fresh] = lengths_N + before - 1
        decoder.count[fresh] = 0
        if decoder.guide is not None:
            decoder.states += [decoder.guide.begin() for _ in jobs]
        self.active += jobs
        self.begun += [self.step - len(job.prompt) for job in jobs]
        decoder.choose(logits_NV, fresh.start, fresh.stop)

    def _collect(self) -> Iterator[Generated]:
        """Gives the answers that have ended and moves the last ones into their slots."""
        decoder = self.decoder
        flags = decoder.done[: len(self.active)].tolist()
        ended = [slot for slot, flag in enumerate(flags) if flag]
        if not ended:
            return
        counts, written = decoder.count[ended].tolist(), decoder.written[ended].tolist()
        results = []
        for slot, count, ids, each in zip(
            ended, counts, written, decoder.logprobs[ended].tolist(), strict=True
        ):
            job, logprob = self.active[slot], math.fsum(each[:count])
            if math.isnan(logprob):
                raise NotFinite(
                    f"the model's output for prompt {job.index} is not finite",
                    fix="answer in model.dtype: bfloat16 or float32; float16 overflows on some models",
                )
            stopped = ids[count - 1] in decoder.stop_ids
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
            self.decoder.move(sources, targets, self.step - min(self.begun[slot] for slot in sources))
            for target, source in zip(targets, sources, strict=True):
                self.active[target], self.begun[target] = self.active[source], self.begun[source]
        del self.active[left:], self.begun[left:], self.decoder.states[left:]


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; 0 where they are too few to be worth it. Each keeps one of its own."""
    if len(prompts) < 2:
        return 0
    least, most = min(prompts, key=list), max(prompts, key=list)
    shortest = min(map(len, prompts)) - 1
    same = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), shortest)
    shared = min(same, shortest)
    return shared if shared >= SHARED else 0
