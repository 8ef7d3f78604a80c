"""One training conversation: the single shape that every format becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `learned`: the model is trained to write it."""

    role: str
    content: str
    learned: bool = False


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

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the answer; all of them when the row has none."""
        return self.messages if self.answer is None else self.messages[:-1]

    @property
    def answer(self) -> str | None:
        """What the last turn, an assistant's, says; None for a row that is still to be answered."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else None

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {
            "id": self.id,
            "document": self.document,
            "slices": dict(self.slices),
            "source": self.source,
            "messages": [{"role": m.role, "content": m.content, "learned": m.learned} for m in self.messages],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Example:
        """The inverse of `to_json`."""
        messages = tuple(Message(m["role"], m["content"], m["learned"]) for m in row["messages"])
        return cls(row["id"], messages, row["document"], row["slices"], row["source"])
