"""What may be asked of a generator, whichever engine answers, and the grammars that answers are held to."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.generate.guide import SchemaGuide
from tunesmith.generate.protocol import Decoding, LiveRequest


def require_prompts(prompts: Sequence[Sequence[int]], decoding: Decoding, room: int) -> None:
    """ModelError where a prompt leaves no room for its answer."""
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty")
        if len(prompt) + decoding.max_tokens > room:
            raise ModelError(
                f"prompt {index} has {len(prompt)} tokens, with {decoding.max_tokens} for the answer more than "
                f"the {room} that there is room for",
                fix="shorten the prompt, or lower evaluate.decoding.max_tokens",
            )


def require_answerable(request: LiveRequest, room: int, words: int) -> None:
    """ModelError where a live request can't be answered. `words`: the width of the model's logits."""
    count = len(request.prompt)
    if not count:
        raise ModelError("the prompt is empty", fix="send at least one token")
    if count + request.max_tokens > room:
        raise ModelError(
            f"the prompt has {count} tokens, with {request.max_tokens} for the answer more than the "
            f"{room} that there is room for",
            fix="shorten the prompt, or ask for fewer tokens",
        )
    if min(request.prompt) < 0 or max(request.prompt) >= words:  # a card's context would not survive it
        raise ModelError(f"the prompt has ids beyond the model's {words} tokens")
    if request.max_tokens < 0 or not 0 <= request.temperature < float("inf"):
        raise ModelError("max_tokens and temperature may not be negative")
    if not 0 <= request.top_p <= 1 or not 0 <= request.top <= words:
        raise ModelError(f"top_p is from 0 to 1, and there are {words} tokens to be told")


class Guides:
    """Grammars of schemas, the `most` that were asked for last; made by one thread at a time, beside the work."""

    def __init__(self, contract: Callable[[], Contract], words: int, most: int) -> None:
        self._contract, self._words, self._most = contract, words, most
        self._tokenizer: str | None = None  # read when the first schema comes: a GGUF's takes seconds
        self._kept: OrderedDict[str, SchemaGuide] = OrderedDict()
        self._making = threading.Lock()

    def of(self, schema: Mapping[str, Any], stop_ids: frozenset[int]) -> SchemaGuide:
        """RecipeError where the schema is unsound."""
        key = json.dumps([schema, sorted(stop_ids)])  # the order of a schema's keys means something
        with self._making:
            if key not in self._kept:
                if self._tokenizer is None:
                    self._tokenizer = self._contract().tokenizer_files["tokenizer.json"].decode("utf-8")
                self._kept[key] = SchemaGuide(schema, self._tokenizer, stop_ids, self._words)
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]
