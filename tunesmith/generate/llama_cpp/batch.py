"""The generator of evaluate, export and predict on a GGUF model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from tunesmith.errors import NotFinite
from tunesmith.generate.asked import require_prompts
from tunesmith.generate.llama_cpp.model import LlamaModel
from tunesmith.generate.llama_cpp.slots import LlamaSlots, Writing
from tunesmith.generate.protocol import Decoding, Generated, Guide, LiveToken
from tunesmith.generate.sampling import stream_key


class LlamaGenerator:
    """See `generate.protocol.Generator`. Answers come as they end; the longest prompts go first."""

    def __init__(self, model: LlamaModel) -> None:
        self.model = model

    @property
    def key(self) -> str:
        """Names the weights, as they answer now."""
        return self.model.key

    @property
    def room(self) -> int:
        """Most tokens that a prompt and its answer may have together."""
        return self.model.room

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        stop_ids: frozenset[int],
        done: AbstractSet[tuple[int, int]] = frozenset(),
        guide: Guide | None = None,
    ) -> Iterator[Generated]:
        """All answers but those (index, sample) in `done`, in the order in which they are finished.

        ModelError where a prompt leaves no room, NotFinite where the model's output is not finite.
        """
        require_prompts(prompts, decoding, self.room)
        numbers = [(i, sample) for i in range(len(prompts)) for sample in range(decoding.samples)]
        jobs = deque(
            sorted((one for one in numbers if one not in done), key=lambda one: -len(prompts[one[0]]))
        )
        if not jobs:
            return
        self.model.claim()
        try:
            yield from self._run(prompts, jobs, decoding, stop_ids, guide)
        finally:
            self.model.release()

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        jobs: deque[tuple[int, int]],
        decoding: Decoding,
        stop_ids: frozenset[int],
        guide: Guide | None,
    ) -> Iterator[Generated]:
        slots = LlamaSlots(self.model)
        names: dict[int, tuple[int, int]] = {}
        written: dict[int, list[LiveToken]] = {}
        while jobs or slots.active:
            while jobs and slots.free:
                ticket = len(names)
                names[ticket], written[ticket] = jobs.popleft(), []
                index, sample = names[ticket]
                key = stream_key(decoding.seed, index, sample)
                slots.admit(_writing(ticket, prompts[index], decoding, stop_ids, key, guide))
            for event in slots.step():
                if event.error is not None:
                    raise _of_prompt(event.error, names[event.ticket][0])
                if event.token is not None:
                    written[event.ticket].append(event.token)
                if event.end:
                    yield _generated(names[event.ticket], written.pop(event.ticket), event.end)


def _of_prompt(error: Exception, index: int) -> Exception:
    if isinstance(error, NotFinite):
        return NotFinite(f"prompt {index}: {error.what}", where=error.where, fix=error.fix)
    return error


def _writing(
    ticket: int,
    prompt: Sequence[int],
    decoding: Decoding,
    stops: frozenset[int],
    key: int,
    guide: Guide | None,
) -> Writing:
    return Writing(
        ticket, prompt, decoding.max_tokens, stops, decoding.temperature, decoding.top_p, key, guide=guide
    )


def _generated(name: tuple[int, int], tokens: list[LiveToken], end: str) -> Generated:
    each, stopped = [token.logprob for token in tokens], end == "stop"
    ids = [token.id for token in tokens]
    return Generated(*name, ids[: len(ids) - stopped], stopped, math.fsum(each), each)
