"""Curves of a run, read from metrics.jsonl and timing.jsonl, while it trains or afterwards. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.run import Run, parsed, read_text, unreadable


class Series(NamedTuple):
    """A figure over optimiser steps; only the steps at which it was written."""

    name: str
    steps: list[int]
    values: list[float]


class Gap(NamedTuple):
    """Validation loss beside the training loss just before it. A growing gap is overfitting."""

    step: int
    training: float | None
    validation: float

    @property
    def gap(self) -> float | None:
        """Validation minus training, in nats per token."""
        return None if self.training is None else self.validation - self.training


def load_series(run: Run) -> dict[str, Series]:
    """Every numeric key of the two files, by name; empty before the first logged step."""
    made: dict[str, Series] = {}
    for line in logged_lines(run):
        for name, value in line.items():
            if name in ("step", "time") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            series = made.setdefault(name, Series(name, [], []))
            series.steps.append(line["step"])
            series.values.append(float(value))
    return made


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file that may still be growing: a torn last line is left out."""
    return [line for _, line in _numbered(path)]


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    whole = (read_text(path) or "").split("\n")[:-1]  # what follows the last "\n" is still being written
    for number, line in enumerate(whole, 1):
        if line:
            yield number, parsed(path, line, number)


def logged_lines(run: Run) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl and timing.jsonl, each with its step."""
    for path in (run.metrics_file, run.timing_file):
        for number, line in _numbered(path):
            if not isinstance(line.get("step"), int):
                raise unreadable(path, "a line has no step", number)
            yield line


def gaps(series: dict[str, Series]) -> list[Gap]:
    """One for each validation. Training loss is the mean over the last quarter of the steps since the one before:
    over all of them it would be that of a younger model."""
    if "validation_loss" not in series:
        return []
    training = series.get("loss", Series("loss", [], []))
    made, after = [], 0
    for step, validation in zip(
        series["validation_loss"].steps, series["validation_loss"].values, strict=True
    ):
        pairs = zip(training.steps, training.values, strict=True)
        recent = [value for at, value in pairs if step - (step - after) / 4 < at <= step]
        made.append(Gap(step, sum(recent) / len(recent) if recent else None, validation))
        after = step
    return made


def best(series: dict[str, Series]) -> tuple[int, float] | None:
    """Step and value of the lowest validation loss; the first of equals, as training keeps it."""
    if "validation_loss" not in series:
        return None
    found = series["validation_loss"]
    at = min(range(len(found.values)), key=lambda i: (found.values[i], i))
    return found.steps[at], found.values[at]
