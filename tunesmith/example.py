"""One training conversation: the single shape that every format becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant")
TEXT = "text"  # the role of plain text, which no template touches


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `learned`: the model is trained to write it."""

    role: str
    content: str
    learned: bool = False
    context: int = 0
    """Character at which the part begins that the row is about, behind an instruction."""
    context_end: int = 0
    """Character behind that part, where a cue may follow. `data.overlong: trim_context` cuts the part from its front;
    0: nothing of this turn may be cut."""

    @classmethod
    def asking(cls, before: str, context: str, behind: str = "") -> Message:
        """A user's turn of which only `context` may ever be cut."""
        begin = len(before)
        return cls("user", f"{before}{context}{behind}", context=begin, context_end=begin + len(context))


@dataclass(frozen=True, slots=True)
class Example:
    """A row, whatever file it came from."""

    id: str
    """Given in the row, or `file:line`."""
    messages: tuple[Message, ...]
    document: str = ""
    """Rows of one document stand on one side of a split and are drawn together by the bootstrap."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """Names under which the row is reported apart, e.g. {"values": "unseen"}."""
    source: str = ""
    """`file:line`, for messages."""
    rejected: str | None = None
    """The worse answer of a preference pair; the better one is the answer."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a scorer needs to know of the row beside prompt and answer (annotated spans, say), as a JSON object."""

    @classmethod
    def make(
        cls,
        question: str,
        answer: str | None,
        *,
        system: str | None = None,
        id: str = "",
        document: str = "",
        slices: Mapping[str, str] | None = None,
        rejected: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Example:
        """One question with its answer (None: still to be answered): what a `data.processor` returns.

        Without `id` the row's place in its file names it; without `document` it is a document of its own.
        """
        turns = [Message("system", system)] if system else []
        turns.append(Message("user", question))
        if answer is not None:
            turns.append(Message("assistant", answer, learned=True))
        return cls(id, tuple(turns), document, slices or {}, rejected=rejected, facts=facts or {})

    @property
    def is_text(self) -> bool:
        """Plain text to go on training with: no prompt, no template."""
        return self.messages[0].role == TEXT

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the answer; all of them when the row has none."""
        return self.messages if self.answer is None else self.messages[:-1]

    @property
    def asked(self) -> str:
        """What the user said: the text in which values are looked for."""
        return "\n".join(message.content for message in self.prompt if message.role == "user")

    @property
    def answer(self) -> str | None:
        """What the last turn, an assistant's, says; None for a row that is still to be answered, and for plain text."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else None

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        messages: list[dict[str, Any]] = []
        for m in self.messages:
            one: dict[str, Any] = {"role": m.role, "content": m.content, "learned": m.learned}
            if m.context:
                one["context"] = m.context
            if m.context_end:
                one["context_end"] = m.context_end
            messages.append(one)
        row: dict[str, Any] = {
            "id": self.id,
            "document": self.document,
            "slices": dict(self.slices),
            "source": self.source,
            "messages": messages,
        }
        if self.rejected is not None:
            row["rejected"] = self.rejected
        return row | {"facts": dict(self.facts)} if self.facts else row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Example:
        """The inverse of `to_json`."""
        messages = tuple(
            Message(m["role"], m["content"], m["learned"], m.get("context", 0), m.get("context_end", 0))
            for m in row["messages"]
        )
        kept = (row["document"], row["slices"], row["source"], row.get("rejected"), row.get("facts", {}))
        return cls(row["id"], messages, *kept)
