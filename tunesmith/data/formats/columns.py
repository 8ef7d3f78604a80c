"""What each column of unknown rows is for: judged by its name first, by its content where names say nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tunesmith.data.row import Row

# best first; a name that is one of these counts before a name that only holds one of their words
ORDERS = ("instruction", "instructions", "question", "query", "prompt", "request", "problem", "command")
CONTEXTS = (
    "input", "context", "passage", "document", "article", "report", "dialogue", "dialog", "conversation", "transcript",
    "abstract", "description", "message", "utterance", "source", "text", "content", "body",
)  # fmt: skip
ANSWERS = (
    "output", "answer", "answers", "response", "reply", "completion", "target", "gold", "reference", "label", "labels",
    "summary", "result", "solution", "extraction", "entities", "translation", "note", "assistant",
)  # fmt: skip
DOCUMENTS = (
    "doc_id", "document_id", "doc", "docid", "pmid", "patient_id", "patient", "subject_id", "hadm_id", "encounter_id",
    "visit_id", "case_id", "case", "report_id", "note_id", "article_id", "study_id", "session_id", "conversation_id",
    "document", "url", "filename", "file", "page",
)  # fmt: skip
LABELS = (
    "task", "task_type", "label", "category", "class", "type", "qtype", "section_header", "specialty", "service",
    "department", "topic", "kind", "intent", "language", "lang", "dataset", "source",
)  # fmt: skip
MOST_LABELS, ROWS_A_LABEL = 30, 10
FEWEST_DOCUMENTS = 10
MOST_OF_ONE = 20  # rows of one id, on average: more have the ids of annotators, sites, labels
_PROSE_WORDS, _PROSE_LETTERS = 4, 30
_DEEP = 3  # levels of objects inside objects that are looked into


@dataclass(frozen=True)
class Column:
    """One column, or `a.b` inside a column of objects."""

    name: str
    rows: int
    """Rows that fill it."""
    of: int
    texts: int
    """… with text."""
    distinct: int
    largest: int
    """Rows of the commonest value."""
    words: float
    """Median of words a filled cell; 0 where it holds no text."""
    letters: float
    """Median of letters of the cells that are not plain ASCII: some scripts part no words."""
    questions: int
    """Texts that end with a question mark."""

    @property
    def is_text(self) -> bool:
        """Nearly all filled cells are text."""
        return self.rows > 0 and self.texts >= 0.9 * self.rows

    @property
    def is_prose(self) -> bool:
        """Sentences rather than names: several words, filled nearly everywhere, mostly different."""
        long = self.words >= _PROSE_WORDS or self.letters >= _PROSE_LETTERS
        return self.is_text and long and self.rows >= 0.9 * self.of and self.distinct >= 0.3 * self.rows

    @property
    def asks(self) -> bool:
        """Most of its texts are questions."""
        return 2 * self.questions > self.texts

    @property
    def told(self) -> str:
        """The column in a few words."""
        if not self.rows:
            return f"{self.name} (empty)"
        if not self.is_text:
            return f"{self.name} (no text)"
        return f"{self.name} (some {self.words:.0f} words, {self.distinct} different in {self.rows} rows)"


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns of these rows, in the order in which they first appear; objects are looked into."""
    cells: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in _cells(row, "", _DEEP):
            cells.setdefault(name, []).append(value)
    return [_column(name, values, len(rows)) for name, values in cells.items()]


def _cells(row: Mapping[str, Any], before: str, deep: int) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in row.items():
        found.append((f"{before}{key}", value))
        if isinstance(value, Mapping) and deep > 1:
            found += _cells(value, f"{before}{key}.", deep - 1)
    return found


def _column(name: str, values: list[Any], of: int) -> Column:
    filled = [value for value in values if value is not None and value != ""]
    texts = [value for value in filled if isinstance(value, str)]
    counts: dict[str, int] = {}
    for value in filled:
        key = value if isinstance(value, str) else repr(value)
        counts[key] = counts.get(key, 0) + 1
    return Column(
        name,
        len(filled),
        of,
        len(texts),
        len(counts),
        max(counts.values(), default=0),
        median(len(text.split()) for text in texts) if texts else 0,
        median([0 if text.isascii() else len(text) for text in texts] or [0]),
        sum(text.rstrip().endswith(("?", "？", "؟")) for text in texts),
    )


def called(columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    """The columns that have one of these names, or one of their words in their own; best first."""
    ranked = [
        (rank, number, one)
        for number, one in enumerate(columns)
        if (rank := _rank(one.name, names)) is not None
    ]
    return [one for _, _, one in sorted(ranked, key=lambda found: found[:2])]


def _rank(column: str, names: Sequence[str]) -> int | None:
    depth = column.count(".")
    words = _words(column.rsplit(".", 1)[-1])
    whole = "_".join(words)
    if whole in names:
        return 1000 * depth + names.index(whole)
    held = [names.index(word) for word in words if word in names]
    return 1000 * depth + 100 + min(held) if held else None


def _words(name: str) -> list[str]:
    """`sectionText`, `Section Text` and `section_text` are two words each."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W_]+", parted.lower())


def is_document(column: Column) -> bool:
    """Whether its values name documents of which some have several rows: enough of them to be split."""
    return (
        column.rows == column.of
        and FEWEST_DOCUMENTS <= column.distinct < column.rows
        and column.largest <= 0.3 * column.rows
    )


def is_identity(column: Column) -> bool:
    """Whether it is called an id of something, of which each has a few rows: whatever it is, they belong together."""
    return (
        _words(column.name.rsplit(".", 1)[-1])[-1:] == ["id"]
        and is_document(column)
        and not is_label(column)
        and column.rows <= MOST_OF_ONE * column.distinct
    )


def is_label(column: Column) -> bool:
    """Whether its values are a handful of kinds."""
    return (
        column.rows == column.of
        and 2 <= column.distinct <= MOST_LABELS
        and column.rows >= ROWS_A_LABEL * column.distinct
        and column.words <= _PROSE_WORDS
    )
