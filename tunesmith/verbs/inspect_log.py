"""evaluate RUN --inspect-log FILE: a finished run's scored rows for inspect_ai. No model; nothing is scored anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.errors import TunesmithError
from tunesmith.recipe_file import load_recipe
from tunesmith.run import find_run
from tunesmith.tasks.score import score_predictions
from tunesmith.view.scored import run_task, scored_rows


def inspect_log(
    name: str, runs_dir: Path, out: Path, system: str | None = None, redact: bool = False
) -> dict[str, Any]:
    """Writes `system`'s answers (tuned) to `out`. A report that was redacted gives a log that is."""
    from tunesmith.evaluate.inspect_log import require_inspect, write_inspect_log
    from tunesmith.evaluate.score import Systems

    require_inspect()
    run = find_run(name, runs_dir)
    content = run.read_json(run.report / "report.json")
    chosen = system or "tuned"
    if chosen not in content.get("scores", {}):
        known = ", ".join(content.get("scores", {}))
        raise TunesmithError(
            f"this run has no scored answers of {chosen!r}",
            where=str(run.path),
            fix=f"--system one of: {known}" if known else "tunesmith run RECIPE",
        )
    recipe = load_recipe(run.recipe_file)
    task, rows = run_task(recipe, run), scored_rows(recipe, run).examples
    scored = score_predictions(run.predictions / f"{chosen}.jsonl", rows, task)
    hidden = redact or bool(content.get("redacted"))
    count = write_inspect_log(content, Systems(task, rows, {chosen: scored}), chosen, out, hidden)
    console.say(f"{count:,} answers of {chosen}{', redacted' if hidden else ''}: {out}")
    console.say(f"read it with: inspect view --log-dir {out.parent}")
    return {"run": str(run.path), "inspect_log": str(out), "headline": content.get("headline")}
