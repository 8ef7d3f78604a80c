"""What a task family has to do, and the shapes in which it says it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from tunesmith.tasks.sums import Metric


class Parsed(NamedTuple):
    """An answer as the task reads it. `value` None: it could not be parsed. Problems begin with their kind:
    `wrapped: …`, `unparsable: …`, `schema: …`."""

    value: Any | None
    problems: tuple[str, ...] = ()

    def has(self, kind: str) -> bool:
        """Whether there is a problem of this kind."""
        return any(problem.startswith(f"{kind}:") for problem in self.problems)


class Detail(NamedTuple):
    """One field of one row for people to read. Verdict: match, partly, wrong, missed, hallucinated, null or
    unparsed (a gold null, and an answer that can't be read)."""

    field: str
    gold: str | None
    predicted: str | None
    verdict: str


class Table(NamedTuple):
    """A table of the report: first column is a name, the others numbers (None where there is nothing to divide)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]
    note: str = ""
    kind: str = ""
    """How it is drawn: `confusion` (gold, answered, times), `calibration` (confidence, right, rows), `risk_coverage`
    (share of rows kept, share wrong among them); empty: as a table alone."""
    quotes: bool = False
    """Holds words of rows or answers: left out of a report that is redacted."""


class Fault(NamedTuple):
    """One thing that is wrong with an answer. `kind` is one of FAULTS."""

    kind: str
    where: str
    """Field, section or type of entity; empty: the answer as a whole."""
    gold: str | None = None
    predicted: str | None = None


FAULTS: dict[str, tuple[int, str]] = {
    # kind: harm (4 may hurt somebody unseen, 3 wrong, 2 left out, 1 form, 0 a remark), what it means
    "hallucinated": (4, "a value, entity or section that the gold does not have"),
    "copied": (4, "the answer repeats a training row's text"),
    "reversed": (4, "the two sides of a pair are exchanged"),
    "wrong": (3, "another value than the gold's"),
    "wrong_pair": (3, "a pair of right entities that the gold does not join"),
    "contradicted": (
        3,
        "what the request or the record itself says is contradicted (sex, service, age, dates)",
    ),
    "type": (3, "the right words as another type of entity"),
    "boundary": (2, "an entity cut short or drawn too wide"),
    "partly": (2, "a part of the gold's items, or more than them"),
    "missed": (2, "a gold value, entity or pair that was left out"),
    "missed_upstream": (2, "a pair that could not be found, as one of its entities was not"),
    "dropped_section": (2, "a section of the gold answer is missing or empty"),
    "truncated": (2, "the answer was cut before its end"),
    "empty": (2, "there is no answer"),
    "unparsable": (1, "the answer is not in the form that was asked for"),
    "malformed": (1, "an identifier or a date that is none, or a schema that is broken"),
    "lost_letters": (1, "characters in the place of letters that were lost: bytes that make none"),
    "wrong_script": (1, "written in another script than the gold answer"),
}


class Task(Protocol):
    """A task family, made for one recipe."""

    name: str
    headline: str
    """The metric of the report's headline."""

    def parse(self, answer: str) -> Parsed:
        """Reads an answer, a model's or a gold one; never raises."""

    def counts(self, prompt: str, gold: Parsed, predicted: Parsed) -> dict[str, float]:
        """One row's sufficient statistics; the same names for every row. Unparsable is all missed."""

    def metrics(self) -> dict[str, Metric]:
        """From summed counts to values, vectorised over draws; NaN where there is nothing to divide by."""

    def explain(self) -> dict[str, str]:
        """What each metric means, in one line."""

    def correct(self, gold: Parsed, predicted: Parsed) -> bool:
        """Whether one row is all right."""

    def tables(self, sums: Mapping[str, float]) -> list[Table]:
        """Tables for the report from counts summed over all rows."""

    def details(self, gold: Parsed, predicted: Parsed) -> list[Detail]:
        """One row, field by field."""

    def unscored(self, gold: Parsed) -> list[str]:
        """What in a gold answer the scores would pass over unseen; must be empty."""

    def common_answer(self, golds: Sequence[Parsed]) -> str:
        """The answer that ignores its prompt: most common values."""


Golds = Iterable[str]
TaskMaker = Callable[[Mapping[str, Any] | None, Golds], Task]
