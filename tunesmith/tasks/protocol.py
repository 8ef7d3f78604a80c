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
