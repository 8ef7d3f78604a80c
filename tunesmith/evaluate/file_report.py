"""The report of one predictions file, whoever made it: scores, faults, studies, examples. No model, no run.

What a file can't tell is left out, and the first line says so: which model answered, and whether it had seen the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.evaluate.build import build
from tunesmith.evaluate.lengths import by_length
from tunesmith.evaluate.published import published_for, types_asked
from tunesmith.evaluate.score import FIRST, About, Systems
from tunesmith.evaluate.shown import markdown, page
from tunesmith.evaluate.shown.examples import quote, stop_share
from tunesmith.evaluate.shown.redaction import redacted
from tunesmith.example import Example
from tunesmith.recipe import Recipe
from tunesmith.run import Run, sha256_file, write_atomic
from tunesmith.tasks import Task
from tunesmith.tasks.score import examples_in, read_predictions, score_answers


def systems_of(predictions: Path, make: Callable[[Sequence[Example]], Task]) -> Systems:
    """The file's answers on the rows that it tells of itself (id, prompt, gold). RowCheckFailed where it lacks some.
    `make`: the task for these rows; so the file is read once and lies in memory once."""
    lines = read_predictions(predictions)
    rows, name = examples_in(lines, str(predictions)), predictions.stem
    task = make(rows)
    told = {} if name in FIRST else {name: About("other", name, f"answers from {predictions.name}")}
    return Systems(task, rows, {name: score_answers(lines, rows, task, where=str(predictions))}, told)


def file_content(recipe: Recipe, predictions: Path, systems: Systems, redact: bool = False) -> dict[str, Any]:
    """report.json of the file alone: the keys of a run's, empty where a file knows nothing; `alone` says of what."""
    (name,) = systems.scored
    lines = [line for row in systems.scored[name].predictions for line in row]
    seed = recipe.evaluate.decoding.seed
    asked = types_asked([example.facts for example in systems.examples])
    content = {
        "run": name,
        "alone": {"file": predictions.name, "sha256": sha256_file(predictions)},
        "recipe_sha256": recipe.hash(),
        "split": "file",
        "selected_on_scored_rows": False,
        "overlap": {},
        "answers_stop": {name: stop_share(systems, name)} if all("stopped" in line for line in lines) else {},
        "proofs": [],
        "redacted": redact,
        **build(systems, seed=seed),
        "lengths": by_length(systems, seed),
        "published": published_for(systems.task.name, systems.task.headline, asked),
    }
    return redacted(content) if redact else content


def write_file_report(content: dict[str, Any], systems: Systems, folder: Path) -> Path:
    """report.json, report.md and report.html in `folder`, which is made; returns the page's path."""
    Run(folder).write_json(folder / "report.json", content)
    write_atomic(folder / "report.md", markdown.render(content).encode("utf-8", "replace"))
    html = page.render(content, {}, None if content["redacted"] else quote(systems))
    write_atomic(folder / "report.html", html.encode())
    return folder / "report.html"
