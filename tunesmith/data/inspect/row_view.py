"""One row as the checks see it: its texts cut out once, its words made when a check asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from tunesmith.data.inspect.field_values import flatten
from tunesmith.data.inspect.plain_words import plain_words
from tunesmith.example import Example
from tunesmith.tasks.protocol import Parsed


class RowView:
    """`number` is the row's place in the Pool; `sampled`: the norms were learned from it too."""

    def __init__(
        self, number: int, example: Example, parse: Callable[[str], Parsed], sampled: bool = False
    ) -> None:
        self.number, self.example, self.sampled = number, example, sampled
        self.is_text = example.is_text
        self.answer = example.answer
        messages = example.messages
        asked = messages if self.answer is None else messages[:-1]
        self.prompts = [turn.content for turn in asked]
        self._parse = parse
        self._last = asked[-1] if asked and not self.is_text else None

    @cached_property
    def parsed(self) -> Parsed | None:
        """The gold answer as the task reads it; None where there is none to read."""
        if self.answer is None or not self.answer.strip():
            return None
        return self._parse(self.answer)

    @cached_property
    def fields(self) -> list[tuple[str, Any]] | None:
        """(field, value) of an answer that is a JSON object, nested ones by `outer.inner`; None for others."""
        parsed = self.parsed
        if parsed is None or not isinstance(parsed.value, dict):
            return None
        return flatten(parsed.value)

    @property
    def ending(self) -> str:
        """The last turn before the answer, without space at its end; empty for plain text."""
        return self._last.content.rstrip() if self._last else ""

    @property
    def context(self) -> int:
        """Character of `ending` at which the row's own input begins."""
        return self._last.context if self._last else 0

    @cached_property
    def asked(self) -> str:
        """What the user said: where values are looked for."""
        turns = self.example.messages if self.answer is None else self.example.messages[:-1]
        return "\n".join([turn.content for turn in turns if turn.role == "user"])

    @cached_property
    def asked_words(self) -> list[str]:
        """Words of `asked`."""
        return plain_words(self.asked)

    @cached_property
    def asked_set(self) -> frozenset[str]:
        """Words of `asked`, each once."""
        return frozenset(self.asked_words)

    @cached_property
    def asked_flat(self) -> str:
        """Words of `asked` between single spaces, one in front and one behind."""
        return f" {' '.join(self.asked_words)} "

    @property
    def said(self) -> str:
        """What the model learns to write, without the keys of a JSON object; for plain text all of it."""
        if self.is_text:
            return self.prompts[0]
        if self.fields is not None:
            return "\n".join([value for _, value in self.fields if isinstance(value, str)])
        return self.answer or ""
