"""Counts of several systems → the part of report.json that comes from scores alone. Pure: no model, no torch.

One draw of documents serves every system, metric and difference of a set of rows: the whole, and each slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.evaluate.score import FIRST, LIKELIHOOD_MEANING, Systems, metrics_of
from tunesmith.evaluate.slices import slices
from tunesmith.example import Example
from tunesmith.statistics import DRAWS, Drawn, mcnemar, sign_test
from tunesmith.tasks import Table, Task
from tunesmith.tasks.answered import answered, lower_is_better, study_of
from tunesmith.tasks.score import Scored, examples_in, read_predictions, score_answers
from tunesmith.tasks.sums import Metric

_INTERVAL = "95 % percentile; Clopper-Pearson over documents where a share is 0 (or 1) in every one"


def build(systems: Systems, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The keys: task, rows, documents, bootstrap, systems, headline, scores, differences, slices, tables, …"""
    task, documents = systems.task, systems.documents
    drawn = systems.draw(draws, seed)
    content: dict[str, Any] = {
        "task": task.name,
        "rows": len(documents),
        "documents": drawn.documents,
        "bootstrap": {"draws": draws, "seed": seed, "unit": "document", "interval": _INTERVAL, "n": "rows"},
        "systems": {name: systems.about(name).to_json() for name in systems.scored},
        "headline": _headline(systems, drawn),
        "scores": {
            name: {metric: drawn.interval(name, of).to_json() for metric, of in metrics_of(task, one).items()}
            for name, one in systems.scored.items()
        },
    }
    if all(name in systems.scored for name in FIRST):
        headline = task.metrics()[task.headline]
        content["differences"] = {
            name: _differences(systems, drawn, name) for name in systems.scored if name != "base"
        }
        content["over_floors"] = {
            floor: drawn.difference(floor, "tuned", headline).to_json() for floor in systems.of_kind("floor")
        }
        content["exported"] = {
            name: drawn.difference("tuned", name, headline).to_json() for name in systems.of_kind("exported")
        }
        content |= _all_right(systems)
    content["slices"] = slices(systems, draws, seed)
    content["tables"] = {
        name: [_table(table) for table in task.tables(_sums(systems.scored[name]))]
        for name in systems.no_floors
    }
    content["studies"] = _studies(systems)
    content["meaning"] = {**task.explain(), **LIKELIHOOD_MEANING}
    return content


def score_file(path: Path, task: Task, examples: Sequence[Example] | None = None) -> dict[str, Any]:
    """Scores of one predictions file, for `evaluate --from`; the rows are those that the file tells of unless given."""
    lines = read_predictions(path)
    rows = examples if examples is not None else examples_in(lines, str(path))
    return build(Systems(task, rows, {path.stem: score_answers(lines, rows, task, where=str(path))}))


def _headline(systems: Systems, drawn: Drawn) -> dict[str, Any]:
    task = systems.task
    metric = task.metrics()[task.headline]
    made: dict[str, Any] = {
        "metric": task.headline,
        "better": "lower" if task.headline in lower_is_better(task) else "higher",
        "n": drawn.rows,
    }
    made |= {name: drawn.value(name, metric) for name in FIRST if name in systems.scored}
    if all(name in made for name in FIRST):
        found = drawn.difference("base", "tuned", metric).to_json()
        made["difference"] = {key: found[key] for key in ("value", "low", "high")}
    elif not any(name in made for name in FIRST):
        made["value"] = drawn.value(next(iter(systems.scored)), metric)
    return made


def _differences(systems: Systems, drawn: Drawn, name: str) -> dict[str, Any]:
    """A system against the base, in all metrics that both have."""
    known: Mapping[str, Metric] = metrics_of(systems.task, systems.scored["base"])
    shared = (metric for metric in metrics_of(systems.task, systems.scored[name]) if metric in known)
    return {metric: drawn.difference("base", name, known[metric]).to_json() for metric in shared}


def _all_right(systems: Systems) -> dict[str, Any]:
    """Rows all right with and without tuning. McNemar's test wants rows that know nothing of each other."""
    base, tuned = (systems.scored[name].correct for name in ("base", "tuned"))
    if len(set(systems.documents)) == len(systems.documents):
        test = mcnemar(base, tuned)
        return {"mcnemar": {"only_base": test.only_first, "only_tuned": test.only_second, "p": test.p}}
    signs = sign_test(base, tuned, systems.documents)
    return {
        "sign_test": {
            "base_better": signs.first_better,
            "tuned_better": signs.second_better,
            "equal": signs.equal,
            "unit": "document",
            "p": signs.p,
        }
    }


def _studies(systems: Systems) -> dict[str, list[dict[str, Any]]]:
    """The task's tables of each model's answers as a whole (the first sample of each row)."""
    if not hasattr(systems.task, "study"):
        return {}
    made = {}
    for name in systems.no_floors:
        lines = systems.scored[name].predictions
        rows = [
            answered(systems.task, example, said[0])
            for example, said in zip(systems.examples, lines, strict=True)
        ]
        made[name] = [_table(table) for table in study_of(systems.task, rows)]
    return made


def _sums(scored: Scored) -> dict[str, float]:
    return {name: float(values.sum()) for name, values in scored.counts.items()}


def _table(table: Table) -> dict[str, Any]:
    return table._asdict()
