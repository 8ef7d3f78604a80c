"""Rows to look at, the worst and the most harmful first; and the mistakes made most often."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tunesmith.evaluate.score import FIRST, Systems, headline_of, metrics_of
from tunesmith.example import Example
from tunesmith.tasks import Detail, Task
from tunesmith.tasks.answered import answered, faults_of, for_answers, lower_is_better
from tunesmith.tasks.protocol import FAULTS, Fault

SHOWN = 25  # rows of either order
_OF_A_KIND = 3  # rows at least that show each kind of fault, where there are as many
_RIGHT = 5  # rows shown at least, though nothing is wrong with them
_VERDICTS = ("hallucinated", "wrong", "missed", "partly")  # worst first among rows of one score
_HARMS = sorted({harm for harm, _ in FAULTS.values()}, reverse=True)


class ShownRow(NamedTuple):
    """A row as the report shows it."""

    id: str
    score: float
    """Headline metric of the shown system on this row; NaN where there was nothing to find."""
    confidence: float | None
    """exp of the mean log-probability of the answer's tokens."""
    text: str
    """What the user said."""
    told: str
    """The system prompt."""
    gold: str
    answers: Mapping[str, str]
    """System → the answer as it was written."""
    problems: tuple[str, ...]
    stopped: bool
    details: Mapping[str, list[Detail]]
    """System → fields."""
    faults: tuple[Fault, ...]
    spans: tuple[tuple[int, int, str], ...]
    """Gold spans in `text` where the row tells of them: begin, end, type."""
    worst: int
    """Place among the shown rows, the lowest score first."""
    harmful: int
    """Place among the shown rows, the most harmful first."""


class Mistake(NamedTuple):
    """A wrong answer that was given more than once."""

    field: str
    gold: str | None
    predicted: str | None
    times: int
    row: str
    """One of the rows."""


class Quoted(NamedTuple):
    """All of a report that quotes rows and answers: left out where it is redacted."""

    rows: list[ShownRow]
    """By `worst`."""
    mistakes: list[Mistake]


class _Look(NamedTuple):
    """What decides whether a row is shown, and where."""

    number: int
    worst: tuple[float, ...]
    harmful: tuple[float, ...]
    kinds: frozenset[str]
    right: bool


def main_system(systems: Systems) -> str:
    """The system that examples are about: tuned where there is one."""
    return next((name for name in FIRST if name in systems.scored), next(iter(systems.scored)))


def quote(systems: Systems, limit: int = SHOWN) -> Quoted:
    """The rows and mistakes of the main system: `limit` rows of either order, and some of every kind of fault."""
    name, task = main_system(systems), systems.task
    scored = systems.scored[name]
    headline = headline_of(systems)
    scores = metrics_of(task, scored)[headline](scored.counts)
    sign = -1.0 if headline in lower_is_better(task) else 1.0
    looks, counted = [], _Mistakes()
    alike = for_answers(task, [lines[0]["answer"] for lines in scored.predictions])
    for number, example in enumerate(systems.examples):
        row = answered(task, example, scored.predictions[number][0])
        details = task.details(row.gold, row.predicted)
        if row.predicted.value is not None:  # else nothing was answered: it can't be read
            counted.add(example.id, details)
        looks.append(
            _look(number, sign * float(scores[number]), details, faults_of(alike, row), row.line, sign)
        )
    chosen = _chosen(looks, limit)
    by_harm = {look.number: place for place, look in enumerate(sorted(chosen, key=lambda one: one.harmful))}
    rows = [
        _shown(systems, alike, name, look.number, float(scores[look.number]), place, by_harm[look.number])
        for place, look in enumerate(sorted(chosen, key=lambda one: one.worst))
    ]
    return Quoted(rows, counted.commonest())


def _look(
    number: int, score: float, details: Sequence[Detail], faults: Sequence[Fault], line: Mapping[str, Any], sign: float
) -> _Look:  # fmt: skip
    verdicts = Counter(detail.verdict for detail in details)
    harms = Counter(FAULTS.get(fault.kind, (0, ""))[0] for fault in faults)
    sure = _confidence(line) or 0.0
    best = 1.0 if sign > 0 else 0.0
    known = best if math.isnan(score) else score
    worst = (known, *(-verdicts[one] for one in _VERDICTS), sure, number)
    # a harmful answer that the model is sure of goes unnoticed longest
    harmful = (*(-harms[harm] for harm in _HARMS), -sure, known, number)
    return _Look(
        number, worst, harmful, frozenset(fault.kind for fault in faults), not faults and known >= best
    )


def _chosen(looks: Sequence[_Look], limit: int) -> list[_Look]:
    by_worst = sorted(looks, key=lambda one: one.worst)
    by_harm = sorted(looks, key=lambda one: one.harmful)
    wrong = [one for one in by_worst if not one.right]
    kept = {one.number: one for one in (wrong if len(wrong) >= _RIGHT else by_worst[:_RIGHT])[:limit]}
    kept |= {one.number: one for one in by_harm[:limit] if one.kinds}
    times: Counter[str] = Counter(kind for one in kept.values() for kind in one.kinds)
    for one in by_harm:
        if one.number not in kept and any(times[kind] < _OF_A_KIND for kind in one.kinds):
            kept[one.number] = one
            times.update(one.kinds)
    return list(kept.values())


def _shown(
    systems: Systems, alike: Task, name: str, number: int, score: float, worst: int, harmful: int
) -> ShownRow:
    """`alike`: the task as it reads the faults of this system's answers."""
    task, example = systems.task, systems.examples[number]
    said = {one: systems.scored[one].predictions[number][0] for one in _beside(systems, name)}
    rows = {one: answered(task, example, line) for one, line in said.items()}
    return ShownRow(
        example.id, score, _confidence(said[name]), example.asked,
        "\n".join(message.content for message in example.prompt if message.role == "system"),
        example.answer or "", {one: str(line["answer"]) for one, line in said.items()},
        rows[name].predicted.problems, bool(said[name].get("stopped", True)),
        {one: task.details(row.gold, row.predicted) for one, row in rows.items()},
        tuple(faults_of(alike, rows[name])), tuple(_spans(example)), worst, harmful,
    )  # fmt: skip


def _beside(systems: Systems, name: str) -> Iterable[str]:
    """The main system first, then the base."""
    return dict.fromkeys([name, *(one for one in FIRST if one in systems.scored)])


def _spans(example: Example) -> Iterable[tuple[int, int, str]]:
    """Gold spans of the types that were asked, where each stands in what the user said to the letter.

    Facts as tasks/annotated/mentions.py reads them: `mentions` count within `article`.
    """
    facts, text = example.facts, example.asked
    begin = (facts.get("article") or [0])[0]
    asked = {str(one).casefold() for one in facts.get("types", ())}
    for start, end, words, kind, *_ in facts.get("mentions", ()):
        if (not asked or str(kind).casefold() in asked) and text[begin + start : begin + end] == words:
            yield begin + start, begin + end, str(kind)


def _confidence(line: Mapping[str, Any]) -> float | None:
    if line.get("logprob") is None or not line.get("tokens"):
        return None
    return math.exp(line["logprob"] / line["tokens"])


class _Mistakes:
    """Wrong answers, counted field by field."""

    def __init__(self) -> None:
        self.seen: dict[str, Counter[tuple[str | None, str | None]]] = {}
        self.rows: dict[tuple[str, str | None, str | None], str] = {}

    def add(self, row: str, details: Sequence[Detail]) -> None:
        for detail in details:
            if detail.verdict in _VERDICTS:
                self.seen.setdefault(detail.field, Counter())[detail.gold, detail.predicted] += 1
                self.rows.setdefault((detail.field, detail.gold, detail.predicted), row)

    def commonest(self, per_field: int = 3) -> list[Mistake]:
        """For each field those that happened at least twice."""
        return [
            Mistake(field, right, given, times, self.rows[field, right, given])
            for field, counter in self.seen.items()
            for (right, given), times in counter.most_common(per_field)
            if times > 1
        ]


def stop_share(systems: Systems, name: str) -> float:
    """Share of answers that ended by a terminator."""
    return float(
        np.mean([line.get("stopped", True) for lines in systems.scored[name].predictions for line in lines])
    )
