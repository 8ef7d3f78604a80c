"""One row with one answer, and what a task may say about it beyond the counts that every task has.

A task family may also have (protocol.py names what all of them must have):

    gold(example) -> Parsed                      the gold answer, where it is more than its text (facts of the row)
    faults(answered) -> list[Fault]              what is wrong with one answer
    study(rows) -> list[Table]                   tables of one system's answers as a whole: confusions, calibration
    every_sample = True                          study sees every sample of a row, not the first alone
    floors(train, examples) -> {name: answers}   answers that need no model
    by_token = True                              predictions keep the log-probability of every token
    lower_is_better = frozenset(metrics)         metrics of which less is better
    of_hundred = frozenset(metrics)              metrics that run from 0 to 100, as their own programs print them
    headline_from = "likelihood"                 the headline's counts come from report/likelihood.jsonl, not from
                                                 `counts`; answers_headline then names the metric of answers that
                                                 stands in where no likelihood was measured
    of_likelihood(counts) -> counts              what its metrics sum, from each row's nll, bytes, tokens (of pairs also
                                                 rejected_nll, …); right_by_likelihood(counts) is then its verdict on
                                                 each row, likelihood_metrics(counts) its metrics
    needs_training_answers = True                it looks answers up in the training rows: made from other golds it
                                                 would find copies where there are none. Without them
                                                 without_training_answers() -> Task leaves these figures out
    for_answers(answers) -> Task                 the task as it scores one system, of which it wants to see all answers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tunesmith.example import Example
from tunesmith.tasks.protocol import Fault, Parsed, Table, Task


class Answered(NamedTuple):
    """A row, its gold answer and what a system said, both as the task reads them."""

    example: Example
    gold: Parsed
    predicted: Parsed
    line: Mapping[str, Any]
    """The line of the predictions file: answer, stopped, tokens, logprob, …"""


def gold_of(task: Task, example: Example) -> Parsed:
    """The row's gold answer as the task reads it."""
    reader = getattr(task, "gold", None)
    made: Parsed = task.parse(example.answer or "") if reader is None else reader(example)
    return made


def answered(task: Task, example: Example, line: Mapping[str, Any]) -> Answered:
    """A row beside one line of a predictions file."""
    return Answered(example, gold_of(task, example), task.parse(line["answer"]), line)


def faults_of(task: Task, row: Answered) -> list[Fault]:
    """What is wrong with an answer: by the task's own rules, else by its details; and whether it is empty or cut."""
    own = getattr(task, "faults", None)
    found: list[Fault] = own(row) if own is not None else _of_details(task, row)
    return [*_form(row), *found]


def study_of(task: Task, rows: Sequence[Answered]) -> list[Table]:
    """The task's tables of one system's answers as a whole."""
    own = getattr(task, "study", None)
    return [] if own is None or not rows else list(own(rows))


def wants_every_sample(task: Task) -> bool:
    """Whether its study is of all samples of each row."""
    return bool(getattr(task, "every_sample", False))


def answers_headline(task: Task) -> str:
    """The headline that needs answers alone: of single rows, floors and predictions files from elsewhere."""
    own: str | None = getattr(task, "answers_headline", None)
    return own or task.headline


def for_answers(task: Task, answers: Sequence[str]) -> Task:
    """The task as it scores one system's `answers`: what they all repeat, say, may count as nothing."""
    own = getattr(task, "for_answers", None)
    made: Task = task if own is None else own(answers)
    return made


def scale_of(task: Task, metric: str) -> int:
    """How large a share of 1 is in a metric: 100 for those that run from 0 to 100."""
    return 100 if metric in getattr(task, "of_hundred", ()) else 1


def lower_is_better(task: Task) -> frozenset[str]:
    """Metrics of which less is better."""
    return frozenset(getattr(task, "lower_is_better", ()))


def _form(row: Answered) -> list[Fault]:
    answer = str(row.line["answer"])
    if not answer.strip():
        return [Fault("empty", "")]
    made = []
    if not row.line.get("stopped", True):
        made.append(Fault("truncated", ""))
    if row.predicted.value is None:
        made.append(
            Fault("unparsable", "", predicted=row.predicted.problems[0] if row.predicted.problems else None)
        )
    elif row.predicted.has("schema"):
        made.append(
            Fault(
                "malformed", "", predicted=next(p for p in row.predicted.problems if p.startswith("schema"))
            )
        )
    return made


def _of_details(task: Task, row: Answered) -> list[Fault]:
    if row.predicted.value is None:
        return []
    return [
        Fault(one.verdict, one.field, one.gold, one.predicted)
        for one in task.details(row.gold, row.predicted)
        if one.verdict in ("hallucinated", "wrong", "partly", "missed")
    ]
