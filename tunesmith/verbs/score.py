"""evaluate --from: scores of a predictions file that anything may have written. No model, no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.recipe import Recipe
from tunesmith.tasks.score import examples_in, read_predictions
from tunesmith.view.scored import task_of


def score(recipe: Recipe, predictions: Path) -> dict[str, Any]:
    """Prints the scores of `predictions` (id, prompt, answer, gold a line) by the recipe's task, with intervals."""
    from tunesmith.evaluate.build import score_file

    golds = [example.answer or "" for example in examples_in(read_predictions(predictions), str(predictions))]
    content = score_file(predictions, task_of(recipe, golds))
    (scores,) = content["scores"].values()
    rows = [
        (name, *(_shown(found[key]) for key in ("value", "low", "high")), found["n"])
        for name, found in scores.items()
        if found["value"] is not None
    ]
    console.table(f"{predictions} ({content['rows']} rows)", ("metric", "value", "low", "high", "n"), rows)
    return {"headline": content["headline"], "scores": scores}


def _shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"
