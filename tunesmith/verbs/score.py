"""evaluate --from: a predictions file that anything may have written, by itself or beside a run's systems. No model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import console
from tunesmith.data.formats.examples import Manner, read_file, to_examples
from tunesmith.data.sources import SourceFile, resolve_sources
from tunesmith.errors import RunChanged, TunesmithError
from tunesmith.example import Example
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import load_recipe
from tunesmith.rows import Rows
from tunesmith.run import Run, find_run, unreadable
from tunesmith.tasks import Task
from tunesmith.tasks.json_answer import read_object
from tunesmith.tasks.score import read_predictions, score_answers
from tunesmith.trained_with import require_same
from tunesmith.view.scored import GOLDS, run_task, scored_rows, task_of, training_answers

if TYPE_CHECKING:
    from tunesmith.evaluate.score import Systems


def score(
    recipe: Recipe,
    predictions: Path,
    runs_dir: Path = Path("runs"),
    out: Path | None = None,
    redact: bool = False,
) -> dict[str, Any]:
    """Prints the scores of `predictions` (id, prompt, answer, gold a line) by the recipe's task, with intervals; with
    `out` also a report of that file alone (json, md, html) in this folder."""
    from tunesmith.evaluate.file_report import file_content, systems_of, write_file_report

    systems = systems_of(predictions, lambda rows: _task(recipe, rows, runs_dir))
    content = file_content(recipe, predictions, systems, redact)
    _print_scores(content, predictions, systems)
    made = {"headline": content["headline"], "scores": next(iter(content["scores"].values()))}
    if out is None:
        return made
    page = write_file_report(content, systems, out)
    console.say(f"report: {page}")
    return made | {"report": str(page)}


def score_beside(name: str, predictions: Path, runs_dir: Path, redact: bool | None = None) -> dict[str, Any]:
    """Scores another system's answers to a run's own rows, sets them beside base and tuned in its report, and keeps
    them as predictions/NAME.jsonl. RowCheckFailed where the ids differ."""
    from tunesmith.evaluate.report import write_report
    from tunesmith.evaluate.systems import give

    run = find_run(name, runs_dir)
    recipe = load_recipe(run.recipe_file)
    system = re.sub(r"[^\w.-]+", "-", predictions.stem) or "other"
    if not (run.report / "report.json").exists():
        raise TunesmithError(
            "this run has no report yet that another system could stand beside",
            where=str(run.path),
            fix="tunesmith run RECIPE; or score the file alone: evaluate --from FILE --recipe RECIPE",
        )
    with run.lock(), console.log_to(run.log_file):
        rows = scored_rows(recipe, run).examples
        score_answers(read_predictions(predictions), rows, run_task(recipe, run), where=str(predictions))
        give(run, system, _bytes(predictions), f"answers from {predictions.name}, made elsewhere")
        content = write_report(recipe, run, redact=redact or None)
    headline = content["headline"]
    found = content["scores"][system].get(headline["metric"], {"value": None})
    console.say(f"{headline['metric']}: {system} {_shown(found['value'])}, {_of_run(headline)}")
    console.say(f"report: {run.report / 'report.html'}")
    return {"run": str(run.path), "headline": headline, "system": system, "scores": content["scores"][system]}


def _of_run(headline: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(headline[name])}" for name in ("tuned", "base") if name in headline)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None


def _print_scores(content: dict[str, Any], predictions: Path, systems: Systems) -> None:
    (scores,) = content["scores"].values()
    rows = [
        (name, *(_shown(found[key]) for key in ("value", "low", "high")), found["n"])
        for name, found in scores.items()
        if found["value"] is not None
    ]
    console.table(f"{predictions} ({content['rows']} rows)", ("metric", "value", "low", "high", "n"), rows)
    (found,) = content["faults"].values()
    kinds = [(one["kind"], one["rows"], one["times"], _places(one["where"])) for one in found["by_kind"]]
    if kinds:
        console.table(
            f"{found['faulty_rows']} of {found['rows']} rows have faults",
            ("fault", "rows", "times", "where"),
            kinds,
        )
    for step in content["next"]:
        console.say(f"- {step['say']}")


def _places(where: dict[str, int]) -> str:
    return ", ".join(f"{place} {times}" for place, times in list(where.items())[:4])


# ---- whose answers the task is made from


def _task(recipe: Recipe, rows: Sequence[Example], runs_dir: Path) -> Task:
    """Made from the training answers of the recipe's run where it lies in `runs_dir`; else from the file's own gold
    answers, unless the task looks answers up in the training rows: then data.train is read."""
    run = Run(runs_dir / recipe.name) if isinstance(runs_dir, Path) else None
    if run is not None and _is_of(recipe, run):
        return task_of(recipe, training_answers(run))
    golds = [row.answer or "" for row in rows]
    if recipe.evaluate.task == "extraction":  # what is no object is named with its row when golds are checked
        golds = [gold for gold in golds if read_object(gold).value is not None] or golds
    task = task_of(recipe, golds)
    if not getattr(task, "needs_training_answers", False):
        return task
    try:
        return task_of(recipe, list(islice(_answers(recipe, rows), GOLDS)))
    except TunesmithError as error:
        console.warn(
            f"the training rows can't be read, so nothing is looked up in them: {error.what} "
            f"(--runs-dir names a folder with the run {recipe.name}, or mend data.train)"
        )
    without = getattr(task, "without_training_answers", None)
    return task if without is None else without()


def _is_of(recipe: Recipe, run: Run) -> bool:
    if not Rows.exists(run.data, "train"):
        return False
    try:
        require_same(recipe, run)
    except RunChanged:
        console.note(f"{run.path} is of another recipe with this name: its training rows are not looked at")
        return False
    return True


def _answers(recipe: Recipe, scored: Sequence[Example]) -> Iterator[str]:
    """Answers of data.train, without those of rows that are scored: a split may have taken them from there."""
    asked = {row.asked for row in scored}
    for source in resolve_sources(recipe.data):
        if source.split == "train":
            for example in _read(recipe, source):
                if example.answer is not None and example.asked not in asked:
                    yield example.answer


def _read(recipe: Recipe, source: SourceFile) -> Iterable[Example]:
    manner = Manner.of(recipe.data)
    if source.path is not None:
        return read_file(source.path, manner)
    from dataclasses import replace

    from tunesmith.starter import reports

    rows = ((row["id"], row) for row in reports.rows(source.split))
    return to_examples(rows, source.name, replace(manner, format="instruction"))


def _shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"
