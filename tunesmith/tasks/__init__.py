"""Task families: how an answer is parsed, checked and scored. Pure: no torch, no files but a schema's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.lookup import find

Sums = Mapping[str, NDArray[np.float64]]
"""Counts summed over rows: name → [draws]."""
Metric = Callable[[Sums], NDArray[np.float64]]


class Parsed(NamedTuple):
    """An answer as the task reads it. `value` None: it could not be parsed. Problems begin with their kind:
    `wrapped: …`, `unparsable: …`, `schema: …`."""

    value: Any | None
    problems: tuple[str, ...] = ()

    def has(self, kind: str) -> bool:
        """Whether there is a problem of this kind."""
        return any(problem.startswith(f"{kind}:") for problem in self.problems)


class Detail(NamedTuple):
    """One field of one row for people to read. Verdict: match, partly, wrong, missed, hallucinated or null."""

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


def _extraction(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.extraction import ExtractionTask

    return ExtractionTask.make(schema, golds)


def _text(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.text import TextTask

    return TextTask()


def _auto(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    """Extraction where a schema is given or every answer is a JSON object, else text."""
    from tunesmith.tasks.json_answer import read_object

    golds = list(golds)
    objects = bool(golds) and all(read_object(gold).value is not None for gold in golds)
    return (_extraction if schema is not None or objects else _text)(schema, golds)


TASKS: dict[str, TaskMaker] = {"auto": _auto, "extraction": _extraction, "text": _text}


def make_task(name: str, schema: Mapping[str, Any] | None = None, golds: Golds = ()) -> Task:
    """The task that a recipe names. `schema`: `data.schema` as a JSON schema; `golds`: answers of the TRAINING rows,
    from which fields and types are inferred where there is no schema."""
    return find(name, TASKS, "task")(schema, golds)
