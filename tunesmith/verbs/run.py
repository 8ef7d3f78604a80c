"""run, prepare, train: a recipe's stages in order. evaluate, export: one stage of a finished run again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tunesmith import console, notify
from tunesmith.data.prepare import row_format
from tunesmith.data.sources import resolve_sources
from tunesmith.errors import RecipeError, SetupError
from tunesmith.evaluate import prompts
from tunesmith.evaluate.shown.findings import first_line, is_warning
from tunesmith.pipeline import NAMES, advance, claim, open_run, redo
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import load_recipe
from tunesmith.run import Run, find_run
from tunesmith.tasks import own_metrics
from tunesmith.train import trackers
from tunesmith.trained_with import require_same


def run(recipe: Recipe, text: str, runs_dir: Path, until: str, fork: bool) -> dict[str, Any]:
    """Brings the recipe's run up to `until`; the same call again resumes."""
    _require_one_process()
    data = recipe.data
    scored = data.test or data.validation or data.split.test or data.split.validation
    if until in ("evaluate", "export") and not scored:  # hours before evaluate would find out
        raise RecipeError(
            "the recipe has no test and no validation rows, so nothing could be scored",
            where="data",
            fix="set some aside (data.split.test: 0.1), give data.test, or stop at the adapter: --until train",
        )
    if until in ("evaluate", "export") and row_format(data, resolve_sources(data)) == "text":
        raise RecipeError(
            "plain text has no questions, so there are no answers that could be scored",
            where="data",
            fix="stop at the adapter: --until train; `tunesmith show` has its loss on validation text",
        )
    notify.require(recipe.train.notify)
    trackers.require(recipe)
    if until in ("evaluate", "export"):
        prompts.require(recipe)
        own_metrics.require(recipe.evaluate.metrics)
    folder = open_run(recipe, runs_dir, fork)
    with folder.lock(), console.log_to(folder.log_file):
        claim(recipe, folder, text)
        console.note(f"run {folder.path}")
        with notify.told(folder, recipe.train.notify):
            advance(recipe, folder, until)
        return _outcome(folder)


def _require_one_process() -> None:
    """SetupError under torchrun and its like: each of their processes would be a whole run."""
    size, rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    if size.isdecimal() and int(size) > 1 and rank:
        raise SetupError(
            f"a launcher has started {size} processes of this command (RANK={rank}, WORLD_SIZE={size})",
            where="the environment",
            fix="give the command by itself, without torchrun or accelerate launch: with train.parallel: ddp it starts "
            "a process for each GPU (TUNESMITH_RANKS chooses how many)",
        )


def again(name: str, runs_dir: Path, stage: str, redact: bool = False) -> dict[str, Any]:
    """Does one stage of a finished run anew; `redact` leaves row texts out of its report from then on."""
    folder = find_run(name, runs_dir)
    recipe = load_recipe(folder.recipe_file)
    require_same(recipe, folder)  # what answers is the model that was trained: same type, same quantisation
    with folder.lock(), console.log_to(folder.log_file):
        redo(recipe, folder, stage, redact)
        return _outcome(folder)


def _outcome(folder: Run) -> dict[str, Any]:
    content = folder.read_json(folder.report / "report.json")
    headline = content.get("headline")
    if headline:
        by = headline["difference"]
        console.say(
            f"{headline['metric']}: base {headline['base']:.3f}, tuned {headline['tuned']:.3f} (n = {headline['n']})"
        )
        # one document has no interval
        interval = "" if by["low"] is None else f" (95 % interval {by['low']:+.3f} to {by['high']:+.3f})"
        console.say(f"difference: {by['value']:+.3f}{interval}")
        if is_warning(content):
            console.warn(first_line(content))
        console.say(f"report: {folder.report / 'report.html'}")
    done = [name for name in NAMES if folder.inputs_of(name)]
    console.say(f"run: {folder.path} ({', '.join(done)})")
    return {"run": str(folder.path), "headline": headline}
