"""runs: all runs of a folder or an S3 prefix, newest first."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.view import words
from tunesmith.view.sources import all_runs
from tunesmith.view.summary import Summary, summarise_any

_SHORTEST = 10  # columns of a name


def runs(runs_dir: str | Path) -> dict[str, Any]:
    """Prints the table; returns every figure of it."""
    now = time.time()
    with all_runs(runs_dir) as sources:
        found = sorted(
            (summarise_any(source, now) for source in sources),
            key=lambda one: (-(one.heartbeat or 0.0), one.name),
        )
    if not found:
        console.say(f"there is no run under {runs_dir}; tunesmith run RECIPE makes one")
        return {"runs": []}
    readable = [one for one in found if one.state != "unreadable"]
    if readable:
        _print(readable, str(runs_dir), now, shutil.get_terminal_size().columns)
    for one in found:
        if one.state == "unreadable":
            console.say(f"{one.name}  unreadable: {one.error}")
    return {"runs": [one.to_json() for one in found]}


def _print(found: list[Summary], runs_dir: str, now: float, width: int) -> None:
    metrics = list(dict.fromkeys(one.headline["metric"] for one in found if one.headline))
    columns = ["run", "state", "step", "seen", "val loss", "headline", "size"]
    rows = [_row(one, now, metrics) for one in found]
    taken = sum(2 + max(len(line[i]) for line in [columns, *rows]) for i in range(1, len(columns)))
    room = max(_SHORTEST, width - taken)
    many = f"{len(found)} runs" if len(found) > 1 else "1 run"
    console.table(
        f"{many} under {runs_dir}", columns, [[words.shortened(row[0], room), *row[1:]] for row in rows]
    )
    for i, metric in enumerate(metrics):
        mark = f"{_mark(i, metrics)} " if len(metrics) > 1 else ""
        console.say(f"{'headline: ' if i == 0 else '          '}{mark}{metric}, base → tuned")


def _row(one: Summary, now: float, metrics: list[str]) -> list[str]:
    headline = words.headline(one.headline)
    if one.headline and len(metrics) > 1:
        headline += f" {_mark(metrics.index(one.headline['metric']), metrics)}"
    return [
        one.name,
        f"{one.state} {one.phase}",
        "–" if one.step is None else f"{one.step}/{one.steps or '?'}",
        "–" if one.heartbeat is None else words.age(now - one.heartbeat),
        "–" if one.best_loss is None else f"{one.best_loss:.3f}",
        headline,
        words.size(one.size),
    ]


def _mark(number: int, metrics: list[str]) -> str:
    """A letter that ties a headline to its metric's name, where there are several."""
    return chr(ord("a") + number) if len(metrics) <= 26 else str(number + 1)
