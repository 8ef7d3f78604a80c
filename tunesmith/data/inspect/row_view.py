"""One row as the checks see it: its texts cut out once, its words made when a check asks for them."""

from __future__ import annotations

from collections.abc import Callable

from tunesmith.data.inspect.field_values import flatten
from tunesmith.data.inspect.plain_words import plain_words
from tunesmith.example import TEXT, Example
from tunesmith.tasks.protocol import Parsed


class RowView:
    """`number` is the row's place in the Pool; `sampled`: the norms were learned from it too.

    answer: None for plain text and rows that are still to be answered.
    parsed: the gold answer as the task reads it; None where there is none, or an empty one.
    fields: (field, value) of an answer that is a JSON object, nested ones by `outer.inner`; None for other answers.
    asked: what the user said, where values are looked for.
    ending: the last turn before the answer, without space at its end; empty for plain text.
    length: characters of that turn, space at its end included.
    context: character of `ending` at which the row's own input begins.
    """

    __slots__ = (
        "_flat", "_set", "_words", "answer", "asked", "context", "ending", "example", "fields", "is_text", "length",
        "number", "parsed", "prompt", "sampled",
    )  # fmt: skip

    def __init__(
        self, number: int, example: Example, parse: Callable[[str], Parsed], sampled: bool = False
    ) -> None:
        self.number, self.example, self.sampled = number, example, sampled
        messages = example.messages
        self.is_text = messages[0].role == TEXT
        self.answer = messages[-1].content if messages[-1].role == "assistant" else None
        turns = messages if self.answer is None else messages[:-1]
        self.asked = "\n".join([turn.content for turn in turns if turn.role == "user"])
        self.prompt = (
            self.asked if len(turns) == 1 and not self.is_text else "\n".join([t.content for t in turns])
        )
        self.ending, self.length, self.context = "", 0, 0
        if turns and not self.is_text:
            last = turns[-1]
            self.ending, self.length, self.context = last.content.rstrip(), len(last.content), last.context
        self.parsed = parse(self.answer) if self.answer and self.answer.strip() else None
        value = self.parsed.value if self.parsed else None
        self.fields = flatten(value) if isinstance(value, dict) else None
        self._words: list[str] | None = None
        self._set: frozenset[str] | None = None
        self._flat: str | None = None

    @property
    def asked_words(self) -> list[str]:
        """Words of `asked`."""
        if self._words is None:
            self._words = plain_words(self.asked)
        return self._words

    @property
    def asked_set(self) -> frozenset[str]:
        """Words of `asked`, each once."""
        if self._set is None:
            self._set = frozenset(self.asked_words)
        return self._set

    @property
    def asked_flat(self) -> str:
        """Words of `asked` between single spaces, one in front and one behind."""
        if self._flat is None:
            self._flat = f" {' '.join(self.asked_words)} "
        return self._flat

    @property
    def said(self) -> str:
        """What the model learns to write, without the keys of a JSON object; for plain text all of it."""
        if self.is_text:
            return self.prompt
        if self.fields is not None:
            return "\n".join([value for _, value in self.fields if value])
        return self.answer or ""
