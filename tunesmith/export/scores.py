"""An exported thing's answers to the scored rows beside the live adapter's: score, loss, equal answers, stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.export.choose import answer
from tunesmith.export.job import Job, free
from tunesmith.model.tuned import load_tuned
from tunesmith.statistics import Interval, bootstrap, paired_difference
from tunesmith.tasks.answered import answers_headline, lower_is_better
from tunesmith.tasks.score import score_predictions
from tunesmith.view.scored import run_task

LIVE = "tuned"  # the live adapter's answers, as evaluate wrote them


class Against(NamedTuple):
    """A thing's answers against the live adapter's, on the same rows."""

    metric: str
    lower: bool
    """Whether less of this metric is better."""
    score: Interval
    difference: Interval
    """Thing less live adapter, the same documents drawn for both."""
    lines: list[dict[str, Any]]
    live: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        pairs = list(zip(self.lines, self.live, strict=True))
        return {
            "metric": self.metric,
            "score": self.score.to_json(),
            "difference": self.difference.to_json(),
            "answers": len(pairs),
            "answers_equal": sum(a["answer"] == b["answer"] for a, b in pairs) / len(pairs),
            "answers_stop": sum(bool(a["stopped"]) for a in self.lines) / len(pairs),
        }


def require_live_answers(job: Job) -> None:
    """Where evaluate has not answered yet, the live adapter answers now; evaluate keeps these answers."""
    if not (job.run.predictions / f"{LIVE}.jsonl").is_file():
        model = load_tuned(job.recipe, job.run.adapter, job.device)
        answer(job.recipe, job.run, model, job.scored.examples, LIVE)
        del model
        free()


def against_live(job: Job, name: str) -> Against:
    """From the two files in predictions/. RowCheckFailed where one is of other rows."""
    task = run_task(job.recipe, job.run)
    headline, seed = answers_headline(task), job.recipe.evaluate.decoding.seed
    metric, folder = task.metrics()[headline], job.run.predictions
    live, own = (
        score_predictions(folder / f"{one}.jsonl", job.scored.examples, task) for one in (LIVE, name)
    )
    return Against(
        metric=headline,
        lower=headline in lower_is_better(task),
        score=bootstrap(own.counts, own.documents, {headline: metric}, seed=seed)[headline],
        difference=paired_difference(live.counts, own.counts, live.documents, metric, seed=seed),
        lines=_lines(folder / f"{name}.jsonl"),
        live=_lines(folder / f"{LIVE}.jsonl"),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
