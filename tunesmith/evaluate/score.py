"""Predictions files of several systems on the same rows → report.json. Pure: no model, no torch.

Systems are named by their files: `tuned` and `base`, the floors `majority` and `nearest`, and whatever export made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith import console
from tunesmith.errors import RowCheckFailed
from tunesmith.example import Example
from tunesmith.statistics import (
    DRAWS,
    Interval,
    bootstrap,
    mcnemar,
    paired_difference,
    paired_differences,
    sign_test,
)
from tunesmith.tasks import Table, Task
from tunesmith.tasks.score import Scored, examples_in, read_predictions, score_answers, score_predictions
from tunesmith.tasks.sums import Metric, ratio

FIRST = ("tuned", "base")
FLOORS = ("majority", "nearest")
SMALL = 30  # rows below which a slice says little
_INTERVAL = "95 % percentile; Clopper-Pearson over documents where a share is 0 (or 1) in every one"
MOST_VALUES = 50  # of one slice name that are scored: the commonest

LIKELIHOOD: dict[str, Metric] = {
    "bits_per_byte": lambda s: ratio(s["nll"], s["bytes"] * np.log(2)),
    "perplexity": lambda s: np.exp(ratio(s["nll"], s["tokens"])),
}
LIKELIHOOD_MEANING = {
    "bits_per_byte": "surprise at the gold answer, per UTF-8 byte of it (terminator left out); lower is better",
    "perplexity": "the same per token, exponential; comparable only between models with this tokenizer",
}


@dataclass(frozen=True)
class Systems:
    """Several systems on the same rows, `tuned` and `base` first."""

    task: Task
    examples: Sequence[Example]
    scored: Mapping[str, Scored]

    @property
    def documents(self) -> tuple[str, ...]:
        """One per row."""
        return next(iter(self.scored.values())).documents


def load_systems(folder: Path, examples: Sequence[Example], task: Task) -> Systems:
    """Every `*.jsonl` in a predictions folder. An exported system's file for other rows is left out, with a note."""
    names = [path.stem for path in sorted(folder.glob("*.jsonl"))]
    order = [*(name for name in (*FIRST, *FLOORS) if name in names)]
    order += [name for name in names if name not in order]
    scored: dict[str, Scored] = {}
    for name in order:
        try:
            scored[name] = score_predictions(folder / f"{name}.jsonl", examples, task)
        except RowCheckFailed as error:
            if name in (*FIRST, *FLOORS):
                raise
            console.note(f"{name} is left out of the report until it is exported again: {error.what}")
    return Systems(task, examples, scored)


def with_likelihood(systems: Systems, rows: Sequence[Mapping[str, Any]]) -> Systems:
    """Adds nats, bytes and tokens of the gold answers to the counts.

    `rows`: {id, bytes, tokens, nll: {system: nats}}. Of other rows than these systems' they are left out.
    """
    by_id = {row["id"]: row for row in rows}
    if set(by_id) != {example.id for example in systems.examples}:
        return systems
    chosen = [by_id[example.id] for example in systems.examples]
    scored = dict(systems.scored)
    for name in scored:
        if not all(name in row["nll"] for row in chosen):
            continue
        counts = {
            "nll": np.array([row["nll"][name] for row in chosen], float),
            "bytes": np.array([row["bytes"] for row in chosen], float),
            "tokens": np.array([row["tokens"] for row in chosen], float),
        }
        scored[name] = replace(scored[name], counts={**scored[name].counts, **counts})
    return replace(systems, scored=scored)


def metrics_of(task: Task, scored: Scored) -> dict[str, Metric]:
    """The task's metrics, and those of the likelihood where it was measured."""
    return {**task.metrics(), **(LIKELIHOOD if "nll" in scored.counts else {})}


def build(systems: Systems, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The part of report.json that comes from scores alone."""
    task, documents = systems.task, systems.documents
    content: dict[str, Any] = {
        "task": task.name,
        "rows": len(documents),
        "documents": len(set(documents)),
        "bootstrap": {"draws": draws, "seed": seed, "unit": "document", "interval": _INTERVAL, "n": "rows"},
        "headline": _headline(systems, draws, seed),
        "scores": {name: _scores(task, one, draws, seed) for name, one in systems.scored.items()},
    }
    if all(name in systems.scored for name in FIRST):
        content["differences"] = {
            name: _differences(systems, name, "base", draws, seed)
            for name in systems.scored
            if name != "base"
        }
        content["over_floors"] = {
            floor: _difference(systems, floor, "tuned", task.headline, draws, seed)
            for floor in FLOORS
            if floor in systems.scored
        }
        content["exported"] = {
            name: _difference(systems, "tuned", name, task.headline, draws, seed)
            for name in systems.scored
            if name not in (*FIRST, *FLOORS)
        }
        content |= _all_right(systems)
    content["slices"] = _slices(systems, draws, seed)
    content["tables"] = {
        name: [_table(table) for table in task.tables(_sums(one))]
        for name, one in systems.scored.items()
        if name not in FLOORS
    }
    content["meaning"] = {**task.explain(), **LIKELIHOOD_MEANING}
    return content


def score_file(path: Path, task: Task, examples: Sequence[Example] | None = None) -> dict[str, Any]:
    """Scores of one predictions file, for `evaluate --from`; the rows are those that the file tells of unless given."""
    lines = read_predictions(path)
    rows = examples if examples is not None else examples_in(lines, str(path))
    return build(Systems(task, rows, {path.stem: score_answers(lines, rows, task, where=str(path))}))


def _headline(systems: Systems, draws: int, seed: int) -> dict[str, Any]:
    task = systems.task
    values = {name: _whole(task, one)[task.headline] for name, one in systems.scored.items()}
    made: dict[str, Any] = {"metric": task.headline, "n": len(systems.documents)}
    made |= {name: values[name] for name in FIRST if name in values}
    if all(name in values for name in FIRST):
        found = _difference(systems, "base", "tuned", task.headline, draws, seed)
        made["difference"] = {key: found[key] for key in ("value", "low", "high")}
    elif not any(name in values for name in FIRST):
        made["value"] = next(iter(values.values()))
    return made


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


def _scores(task: Task, scored: Scored, draws: int, seed: int) -> dict[str, Any]:
    found = bootstrap(scored.counts, scored.documents, metrics_of(task, scored), draws, seed)
    return {name: interval.to_json() for name, interval in found.items()}


def _difference(
    systems: Systems, first: str, second: str, metric: str, draws: int, seed: int
) -> dict[str, Any]:
    one, other = systems.scored[first], systems.scored[second]
    function = systems.task.metrics()[metric]
    return paired_difference(one.counts, other.counts, one.documents, function, draws, seed).to_json()


def _differences(systems: Systems, name: str, against: str, draws: int, seed: int) -> dict[str, Any]:
    one, other = systems.scored[against], systems.scored[name]
    known = metrics_of(systems.task, one)
    shared = {metric: known[metric] for metric in metrics_of(systems.task, other) if metric in known}
    found = paired_differences(one.counts, other.counts, one.documents, shared, draws, seed)
    return {metric: interval.to_json() for metric, interval in found.items()}


def _slices(systems: Systems, draws: int, seed: int) -> list[dict[str, Any]]:
    """Scores of the rows that carry a slice's value; `small` where there are too few to say much."""
    made = []
    for slice_name in sorted({name for example in systems.examples for name in example.slices}):
        values = [example.slices.get(slice_name) for example in systems.examples]
        common = Counter(value for value in values if value is not None).most_common(MOST_VALUES)
        for value, _ in sorted(common):
            kept = np.array([one == value for one in values])
            made.append(_slice(systems, slice_name, value, kept, draws, seed))
    return made


def _slice(
    systems: Systems, name: str, value: str, kept: NDArray[np.bool_], draws: int, seed: int
) -> dict[str, Any]:
    part = replace(
        systems,
        examples=[example for example, keep in zip(systems.examples, kept, strict=True) if keep],
        scored={system: one.take(kept) for system, one in systems.scored.items()},
    )
    made: dict[str, Any] = {
        "slice": name,
        "value": value,
        "rows": len(part.documents),
        "documents": len(set(part.documents)),
        "small": len(part.documents) < SMALL,
        "scores": {
            system: {k: v for k, v in _scores(systems.task, one, draws, seed).items() if ":" not in k}
            for system, one in part.scored.items()
        },
    }
    if all(system in part.scored for system in FIRST):
        made["difference"] = _difference(part, "base", "tuned", systems.task.headline, draws, seed)
    return made


def _whole(task: Task, scored: Scored) -> dict[str, float]:
    """Values without intervals, over all rows."""
    sums = {name: values.sum(keepdims=True) for name, values in scored.counts.items()}
    return {name: float(metric(sums)[0]) for name, metric in task.metrics().items()}


def _sums(scored: Scored) -> dict[str, float]:
    return {name: float(values.sum()) for name, values in scored.counts.items()}


def _table(table: Table) -> dict[str, Any]:
    return {"title": table.title, "columns": table.columns, "rows": table.rows, "note": table.note}


def interval(score: Mapping[str, Any]) -> Interval:
    """An interval back from report.json."""
    numbers = [float("nan") if score[key] is None else float(score[key]) for key in ("value", "low", "high")]
    return Interval(numbers[0], numbers[1], numbers[2], int(score["n"]))
