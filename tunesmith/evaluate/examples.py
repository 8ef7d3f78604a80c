"""Rows to look at: the worst first, gold beside what base and tuned said; and the mistakes made most often."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tunesmith.evaluate.score import FIRST, Systems
from tunesmith.tasks import Detail
from tunesmith.tasks.answered import gold_of
from tunesmith.tasks.score import row_scores

SHOWN = 25
_HARM = ("hallucinated", "wrong", "missed", "partly")  # worst first among rows of one score


class ShownRow(NamedTuple):
    """A row as the report shows it."""

    id: str
    score: float
    """Headline metric of the shown system on this row; NaN where there was nothing to find."""
    confidence: float | None
    """exp of the mean log-probability of the answer's tokens."""
    text: str
    gold: str
    answers: Mapping[str, str]
    problems: tuple[str, ...]
    stopped: bool
    details: Mapping[str, list[Detail]]
    """System → fields."""


class Mistake(NamedTuple):
    """A wrong answer that was given more than once."""

    field: str
    gold: str | None
    predicted: str | None
    times: int
    row: str
    """One of the rows."""


def main_system(systems: Systems) -> str:
    """The system that examples are about: tuned where there is one."""
    return next((name for name in FIRST if name in systems.scored), next(iter(systems.scored)))


def worst(systems: Systems, limit: int = SHOWN) -> list[ShownRow]:
    """Rows by the main system's score, then by harm: values made up before values left out; then by confidence."""
    name = main_system(systems)
    scored, task = systems.scored[name], systems.task
    scores = row_scores(scored, task)
    rows = []
    for number, example in enumerate(systems.examples):
        gold = gold_of(task, example)
        said = {
            system: systems.scored[system].predictions[number][0]
            for system in FIRST
            if system in systems.scored
        }
        said.setdefault(name, scored.predictions[number][0])
        parsed = {system: task.parse(line["answer"]) for system, line in said.items()}
        rows.append(
            ShownRow(
                example.id,
                float(scores[number]),
                _confidence(said[name]),
                example.asked,
                example.answer or "",
                {system: line["answer"] for system, line in said.items()},
                parsed[name].problems,
                bool(said[name].get("stopped", True)),
                {system: task.details(gold, one) for system, one in parsed.items()},
            )
        )
    return sorted(rows, key=lambda row: _order(row, name))[:limit]


def _order(row: ShownRow, name: str) -> tuple[Any, ...]:
    verdicts = Counter(detail.verdict for detail in row.details[name])
    score = 1.0 if math.isnan(row.score) else row.score
    return (score, *(-verdicts[harm] for harm in _HARM), row.confidence or 0.0)


def _confidence(line: Mapping[str, Any]) -> float | None:
    if line.get("logprob") is None or not line.get("tokens"):
        return None
    return math.exp(line["logprob"] / line["tokens"])


def mistakes(systems: Systems, per_field: int = 3) -> list[Mistake]:
    """For each field the commonest wrong answers of the main system that happened at least twice."""
    task, scored = systems.task, systems.scored[main_system(systems)]
    seen: dict[str, Counter[tuple[str | None, str | None]]] = {}
    rows: dict[tuple[str, str | None, str | None], str] = {}
    for number, example in enumerate(systems.examples):
        gold = gold_of(task, example)
        for detail in task.details(gold, task.parse(scored.predictions[number][0]["answer"])):
            if detail.verdict in _HARM:
                seen.setdefault(detail.field, Counter())[detail.gold, detail.predicted] += 1
                rows.setdefault((detail.field, detail.gold, detail.predicted), example.id)
    found = []
    for field, counter in seen.items():
        for (right, given), times in counter.most_common(per_field):
            if times > 1:
                found.append(Mistake(field, right, given, times, rows[field, right, given]))
    return found


def stop_share(systems: Systems, name: str) -> float:
    """Share of answers that ended by a terminator."""
    return float(
        np.mean([line.get("stopped", True) for lines in systems.scored[name].predictions for line in lines])
    )
