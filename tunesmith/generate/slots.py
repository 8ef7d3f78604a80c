"""The generator: answers side by side in the slots of a static cache, new prompts admitted as slots fall free.

A step synchronises with the device once, to learn which answers ended. What all prompts begin with (an instruction,
examples) goes through the model once.
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

from tunesmith.errors import NotFinite
from tunesmith.generate.asked import require_prompts
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.identity import model_key
from tunesmith.generate.protocol import Decoding, Generated, Guide
from tunesmith.generate.room import slots_that_fit
from tunesmith.generate.sampling import bytes_a_logit, stream_key
from tunesmith.generate.session import Session
from tunesmith.model.attention import ATTENTION
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
        require_prompts(prompts, decoding, self.room)
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


class _Session(Session[Decoder, _Job]):
    """One call of `generate`."""

    def __init__(self, decoder: Decoder, waiting: list[_Job]) -> None:
        super().__init__(decoder)
        self.waiting = deque(waiting)
        self.before = _shared([job.prompt for job in waiting])
        self.tokens = PREFILL_TOKENS if decoder.device.type == "cuda" else PREFILL_TOKENS_ON_CPU

    def run(self) -> Iterator[Generated]:
        if self.before:
            self.prefill_shared(self.waiting[0].prompt[: self.before])
        while self.active or self.waiting:
            while self.waiting and self._worth_admitting():
                self._admit()
                yield from self._collect()
            if self.active:
                self.decoder.step(len(self.active), self.step())
                yield from self._collect()

    def _worth_admitting(self) -> bool:
        """A forward pass for one prompt alone is dear on a card: a few slots are let fall free first."""
        return self.free >= min(max(1, self.slots // ADMIT_SHARE), len(self.waiting))

    @torch.no_grad()
    def _admit(self) -> None:
        """Prefills waiting prompts into free slots, within the token budget, and chooses their first tokens."""
        tokens = 0
        jobs: list[_Job] = []
        while self.waiting and len(jobs) < self.free:
            tokens += len(self.waiting[0].prompt) - self.before
            if jobs and tokens > self.tokens:
                break
            jobs.append(self.waiting.popleft())
        logits_NV = self.prefill([job.prompt for job in jobs], self.before)
        keys = [stream_key(self.decoder.decoding.seed, job.index, job.sample) for job in jobs]
        fresh = self.begin(jobs, [len(job.prompt) for job in jobs], keys)
        self.decoder.choose(logits_NV, fresh.start, fresh.stop)

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
        self.compact(flags)
        del decoder.states[len(self.active) :]
        yield from results


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; 0 where they are too few to be worth it. Each keeps one of its own."""
    if len(prompts) < 2:
        return 0
    least, most = min(prompts, key=list), max(prompts, key=list)
    shortest = min(map(len, prompts)) - 1
    same = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), shortest)
    shared = min(same, shortest)
    return shared if shared >= SHARED else 0
