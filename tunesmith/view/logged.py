"""The logged steps of runs as rows: metrics and timing joined by their step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.run import Run
from tunesmith.view.series import logged_lines


def logged(runs: Mapping[str, Run]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns, and a row for each run and logged step; a row lacks what was not written at its step.

    A step of timing.jsonl that metrics.jsonl has not (or the other way round, in a copy under way) is a row too.
    """
    columns = {"run": None, "step": None}
    rows = []
    for name, run in runs.items():
        steps: dict[int, dict[str, Any]] = {}
        for line in logged_lines(run):
            columns |= dict.fromkeys(line)
            steps.setdefault(line["step"], {"run": name}).update(line)
        rows += [steps[step] for step in sorted(steps)]
    return list(columns), rows
