"""Predictions files of several systems on the same rows → their counts. Pure: no model, no torch.

Systems are named by their files: `tuned` and `base`, floors such as `majority` and `nearest`, and whatever evaluate and
export made beside them. `report/systems.json` says of what kind each is and how a page calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith import console
from tunesmith.errors import RowCheckFailed
from tunesmith.evaluate.measured.bertscore_counts import bertscore_counts, bertscore_metrics
from tunesmith.example import Example
from tunesmith.statistics import Drawn, Interval
from tunesmith.tasks import Task
from tunesmith.tasks.answered import answers_headline
from tunesmith.tasks.score import Scored, score_predictions
from tunesmith.tasks.sums import Metric, ratio

FIRST = ("tuned", "base")
FLOORS = ("majority", "nearest", "dictionary", "gold_pairs")
KINDS = ("tuned", "base", "floor", "prompt", "constrained", "quantised", "exported", "other")
_AGAIN = {"exported": "exported again", "other": "given again (evaluate RUN --from FILE)"}
SMALL = 30  # rows below which a slice says little

LIKELIHOOD: dict[str, Metric] = {
    "bits_per_byte": lambda s: ratio(s["nll"], s["bytes"] * np.log(2)),
    "perplexity": lambda s: np.exp(ratio(s["nll"], s["tokens"])),
}
LIKELIHOOD_MEANING = {
    "bits_per_byte": "surprise at the gold answer, per UTF-8 byte of it (terminator left out); lower is better",
    "perplexity": "the same per token, exponential; comparable only with this tokenizer; lower is better",
}


@dataclass(frozen=True)
class About:
    """What a system is."""

    kind: str
    """One of KINDS."""
    shown: str
    """As a page calls it."""
    note: str = ""
    """How its answers were made, where its name doesn't say it."""

    def to_json(self) -> dict[str, str]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class Systems:
    """Several systems on the same rows, `tuned` and `base` first."""

    task: Task
    examples: Sequence[Example]
    scored: Mapping[str, Scored]
    told: Mapping[str, About] = field(default_factory=dict)
    """What was written about systems when their answers were made."""

    def about(self, name: str) -> About:
        """What a system is: as told, else by its name."""
        return self.told.get(name) or About(_kind(name), name)

    def of_kind(self, *kinds: str) -> list[str]:
        """Names of the systems of these kinds."""
        return [name for name in self.scored if self.about(name).kind in kinds]

    @property
    def no_floors(self) -> list[str]:
        """Names of the systems that are models."""
        return [name for name in self.scored if self.about(name).kind != "floor"]

    def draw(self, draws: int, seed: int) -> Drawn:
        """One draw of documents for all of them."""
        return Drawn({name: one.counts for name, one in self.scored.items()}, self.documents, draws, seed)

    @property
    def documents(self) -> tuple[str, ...]:
        """One per row."""
        return next(iter(self.scored.values())).documents


def _kind(name: str) -> str:
    """By its file's name: what evaluate did not write, export made."""
    return name if name in FIRST else "floor" if name in FLOORS else "exported"


def told_in(content: Mapping[str, Any]) -> dict[str, About]:
    """report/systems.json: {name: {kind, shown, note}}. Of a kind that this version doesn't know: other."""
    return {
        name: About(
            one["kind"] if one.get("kind") in KINDS else "other", one.get("shown", name), one.get("note", "")
        )
        for name, one in content.items()
        if isinstance(one, dict)
    }


def load_systems(
    folder: Path, examples: Sequence[Example], task: Task, told: Mapping[str, About] | None = None
) -> Systems:
    """Every `*.jsonl` in a predictions folder. A file for other rows is left out, with a note, where export made it."""
    systems = Systems(task, examples, {}, told or {})
    names = [path.stem for path in sorted(folder.glob("*.jsonl"))]
    floors = [name for name in (*FLOORS, *names) if name in names and systems.about(name).kind == "floor"]
    order = dict.fromkeys([*(name for name in FIRST if name in names), *floors, *names])
    scored: dict[str, Scored] = {}
    for name in order:
        try:
            scored[name] = score_predictions(folder / f"{name}.jsonl", examples, task)
        except RowCheckFailed as error:
            again = _AGAIN.get(systems.about(name).kind)
            if again is None:
                raise
            console.note(f"{name} is left out of the report until it is {again}: {error.what}")
    return replace(systems, scored=scored)


def with_likelihood(systems: Systems, rows: Sequence[Mapping[str, Any]]) -> Systems:
    """Adds nats, bytes and tokens of the gold answers to the counts, of pairs those of the worse answers too, and what
    the task makes of them.

    `rows`: {id, bytes, tokens, nll: {system: nats}}, and rejected_… of each. Of other rows than these systems' they are
    left out.
    """
    by_id = {row["id"]: row for row in rows}
    if set(by_id) != {example.id for example in systems.examples}:
        return systems
    chosen = [by_id[example.id] for example in systems.examples]
    sides = [side for side in ("", "rejected_") if all(f"{side}nll" in row for row in chosen)]
    scored = dict(systems.scored)
    for name, one in scored.items():
        if not all(name in row["nll"] for row in chosen):
            continue
        counts = dict(one.counts)
        for side in sides:
            counts[f"{side}nll"] = np.array([row[f"{side}nll"][name] for row in chosen], float)
            for what in ("bytes", "tokens"):
                counts[f"{side}{what}"] = np.array([row[f"{side}{what}"] for row in chosen], float)
        scored[name] = _judged(systems.task, replace(one, counts=counts))
    return replace(systems, scored=scored)


def with_bertscore(systems: Systems, rows: Sequence[Mapping[str, Any]]) -> Systems:
    """Adds the counts of report/bertscore.jsonl to every system that was measured on all rows."""
    scored = {
        name: replace(one, counts={**one.counts, **bertscore_counts(rows, one.ids, name)})
        for name, one in systems.scored.items()
    }
    return replace(systems, scored=scored)


def _judged(task: Task, scored: Scored) -> Scored:
    """With the counts that a task makes of likelihoods, and its own verdict on each row."""
    made: dict[str, NDArray[np.float64]] = getattr(task, "of_likelihood", lambda counts: {})(scored.counts)
    if not made:
        return scored
    right = getattr(task, "right_by_likelihood", lambda counts: scored.correct)(scored.counts)
    return replace(scored, counts={**scored.counts, **made}, correct=right)


def metrics_of(task: Task, scored: Scored) -> dict[str, Metric]:
    """The task's metrics, and those of the likelihood and of BERTScore where they were measured."""
    own: dict[str, Metric] = getattr(task, "likelihood_metrics", lambda counts: {})(scored.counts)
    measured = {**(LIKELIHOOD if "nll" in scored.counts else {}), **bertscore_metrics(scored.counts)}
    return {**own, **task.metrics(), **measured}


def headline_of(systems: Systems) -> str:
    """The task's headline; that of answers where it stands on likelihoods which base, tuned or a lone system lack."""
    named = [name for name in FIRST if name in systems.scored] or list(systems.scored)[:1]
    known = [metrics_of(systems.task, systems.scored[name]) for name in named]
    headline = systems.task.headline
    return headline if all(headline in one for one in known) else answers_headline(systems.task)


def interval(score: Mapping[str, Any]) -> Interval:
    """An interval back from report.json."""
    numbers = [float("nan") if score[key] is None else float(score[key]) for key in ("value", "low", "high")]
    return Interval(numbers[0], numbers[1], numbers[2], int(score["n"]))
