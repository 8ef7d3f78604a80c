"""Answers held to a JSON schema while they are written, by llguidance (github.com/guidance-ai/llguidance).

A matcher for each answer says which tokens may come next; the mask is computed in C, bit-packed, and moved to the
logits' device as int32. The answer may end by a stop id of the Contract, and only once the JSON is whole. Keys come in
the schema's order. White space between tokens of JSON is bounded, or a model could write nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer, get_version
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.contract import Contract
from tunesmith.errors import ModelError, RecipeError
from tunesmith.generate.schema_bounds import require_bounded
from tunesmith.tasks import Task

_SPACE = r"[ \t\r\n]{0,24}"  # a line break and an indentation of pretty-printed JSON
_FIX = "give data.schema a schema without it, or leave evaluate.constrained out"


class SchemaGuide:
    """See `generate.protocol.Guide`. `width`: the model's logits may be more than the tokenizer has tokens."""

    def __init__(
        self, schema: Mapping[str, Any], tokenizer_json: str, stop_ids: frozenset[int], width: int
    ) -> None:
        self._grammar = _grammar(schema)
        self._stop_ids, self._width = sorted(stop_ids), width
        try:
            self._tokenizer = _tokenizer(tokenizer_json, width, tuple(self._stop_ids))
        except ValueError as error:
            raise ModelError(
                f"answers can't be constrained with this tokenizer: {_first_line(error)}",
                where="tokenizer.json",
                fix="leave evaluate.constrained out",
            ) from None
        self._first = LLMatcher(self._tokenizer, self._grammar)
        _require_sound(self._first)
        opened = self._first.deep_copy()  # too many keys are seen only where the first may come
        opened.try_consume_tokens(self._tokenizer.tokenize_str('{"'))
        _require_sound(opened)
        self._executor = LLExecutor()
        self._bits = torch.arange(32, dtype=torch.int32)

    @classmethod
    def of(cls, task: Task, contract: Contract, model: PreTrainedModel) -> SchemaGuide:
        """For the task's schema, the run's own tokenizer and the model's output."""
        text = contract.tokenizer_files["tokenizer.json"].decode("utf-8")
        return cls(require_schema(task), text, contract.stop_ids, int(model.config.vocab_size))

    @property
    def key(self) -> str:
        """Names the grammar."""
        made_of = [self._grammar, self._stop_ids, get_version()]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]

    def begin(self) -> LLMatcher:
        """The state of an answer that has not begun."""
        return self._first.deep_copy()

    def hold(self, states: Sequence[LLMatcher], logits_NV: Tensor) -> Tensor:
        """The logits with -inf at what may not come next; a row for each state."""
        words = (self._width + 31) // 32
        mask_NW = torch.empty(len(states), words, dtype=torch.int32)
        indexed = [(state, row) for row, state in enumerate(states)]
        self._executor.unsafe_compute_mask_ptr(indexed, mask_NW.data_ptr(), words * 4, len(states))
        for state in states:
            _require_sound(state)
        device = logits_NV.device
        self._bits = self._bits.to(device)
        bits_NW32 = mask_NW.to(device, non_blocking=True)[:, :, None] >> self._bits & 1
        return logits_NV.masked_fill(bits_NW32.flatten(1)[:, : self._width] == 0, float("-inf"))

    def accept(self, states: Sequence[LLMatcher], tokens: Sequence[int]) -> None:
        """Each answer went on with its token; what follows an end is not looked at."""
        for state, token in zip(states, tokens, strict=True):
            if not state.is_stopped() and not state.consume_token(token):
                # the rest of what it says repeats the answer
                why = _first_line(state.get_error())
                if "satisfy the grammar" not in why:  # the grammar has grown beyond llguidance's limits
                    raise _refused(why)
                raise RuntimeError(f"token {token} was chosen against the grammar: {why}")


def require_schema(task: Task) -> Mapping[str, Any]:
    """The task's JSON schema. RecipeError where it has none, or one that answers can't be held to."""
    schema: Mapping[str, Any] | None = getattr(task, "schema", None)
    if schema is None:
        raise RecipeError(
            f"the task {task.name} has no JSON schema that answers could be held to",
            where="evaluate.constrained",
            fix="leave it out, or score JSON answers: evaluate.task: extraction, or data.schema",
        )
    wrong, said = LLMatcher.validate_grammar_with_warnings(_grammar(schema))
    if wrong:
        raise _refused(said[0])
    return schema


@lru_cache(maxsize=4)
def _tokenizer(tokenizer_json: str, width: int, stop_ids: tuple[int, ...]) -> LLTokenizer:
    """One for all grammars: a second's work where there are many tokens."""
    return LLTokenizer(tokenizer_json, n_vocab=width, eos_token=list(stop_ids))


def _grammar(schema: Mapping[str, Any]) -> str:
    require_bounded(schema, _FIX)
    whole = {**schema, "type": "object"}  # said or not
    try:
        return LLMatcher.grammar_from_json_schema(whole, overrides={"whitespace_pattern": _SPACE})
    except ValueError as error:  # a whole number of more than 64 bits
        raise _refused(error) from None


def _require_sound(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise _refused(matcher.get_error())


def _refused(why: object) -> RecipeError:
    said = _first_line(why)[:200]
    return RecipeError(f"answers can't be held to this schema: {said}", where="data.schema", fix=_FIX)


def _first_line(error: object) -> str:
    """And the last one, where the first only says that there is a reason (`regex parse error:`)."""
    lines = str(error).splitlines() or ["?"]
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
