"""run, prepare, train: a recipe's stages in order. evaluate, export: one stage of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.pipeline import NAMES, advance, claim, open_run
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import load_recipe
from tunesmith.run import Run, find_run


def run(recipe: Recipe, text: str, runs_dir: Path, until: str, fork: bool) -> dict[str, Any]:
    """Brings the recipe's run up to `until`; the same call again resumes."""
    folder = open_run(recipe, runs_dir, fork)
    with folder.lock(), console.log_to(folder.log_file):
        claim(recipe, folder, text)
        console.note(f"run {folder.path}")
        advance(recipe, folder, until)
        return _outcome(folder)


def again(name: str, runs_dir: Path, stage: str) -> dict[str, Any]:
    """Does one stage of a finished run anew."""
    folder = find_run(name, runs_dir)
    recipe = load_recipe(folder.recipe_file)
    with folder.lock(), console.log_to(folder.log_file):
        advance(recipe, folder, stage, again=frozenset({stage}))
        return _outcome(folder)


def _outcome(folder: Run) -> dict[str, Any]:
    headline = folder.read_json(folder.report / "report.json").get("headline")
    if headline:
        by = headline["difference"]
        console.say(
            f"{headline['metric']}: base {headline['base']:.3f}, tuned {headline['tuned']:.3f} (n = {headline['n']})"
        )
        console.say(f"difference: {by['value']:+.3f} (95 % interval {by['low']:+.3f} to {by['high']:+.3f})")
        console.say(f"report: {folder.report / 'report.html'}")
    done = [name for name in NAMES if folder.inputs_of(name)]
    console.say(f"run: {folder.path} ({', '.join(done)})")
    return {"run": str(folder.path), "headline": headline}
