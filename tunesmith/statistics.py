"""Intervals and tests for scores: bootstrap by document, paired differences, McNemar. numpy only.

Every metric is a function of sums over rows ("counts"), so a draw of documents is a weighted sum of counts: draws are
exact for ratios such as F1 or bits per byte, and cheap. Documents are drawn, never rows: rows of one document hang
together, and row-level intervals come out too narrow (Miller 2024, "Adding Error Bars to Evals").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import TunesmithError
from tunesmith.tasks.sums import Metric

Counts = Mapping[str, NDArray[np.float64]]
"""Name of a count → its value in each row [rows]."""

DRAWS = 2000
_BLOCK = 4_000_000  # cells of the draws × documents matrix that are held at once


class Interval(NamedTuple):
    """A value with its 95 % percentile interval over `n` rows. NaN where nothing could be counted."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """NaN becomes null."""
        value, low, high = (None if math.isnan(x) else x for x in self[:3])
        return {"value": value, "low": low, "high": high, "n": self.n}


class McNemar(NamedTuple):
    """Rows that only one of two systems got right, and the exact two-sided p that both are equally good."""

    only_first: int
    only_second: int
    p: float


def bootstrap(
    counts: Counts, documents: Sequence[str], metrics: Mapping[str, Metric], draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """Each metric with its interval. `counts`: name → [rows]; `documents`: one per row; same seed, same draws."""
    names, by_document = _sum_by_document(counts, documents)
    drawn = _as_counts(names, _draw(by_document, draws, seed))
    whole = _as_counts(names, by_document.sum(axis=0, keepdims=True))
    n = len(documents)
    return {name: _interval(metric(whole)[0], metric(drawn), n) for name, metric in metrics.items()}


def paired_difference(
    first: Counts, second: Counts, documents: Sequence[str], metric: Metric, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """`metric(second) - metric(first)` on the same rows, the same documents drawn for both."""
    return paired_differences(first, second, documents, {"it": metric}, draws, seed)["it"]


def paired_differences(
    first: Counts,
    second: Counts,
    documents: Sequence[str],
    metrics: Mapping[str, Metric],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """`paired_difference` of each metric."""
    sides = []
    for counts in (first, second):
        names, by_document = _sum_by_document(counts, documents)
        whole = _as_counts(names, by_document.sum(axis=0, keepdims=True))
        sides.append((whole, _as_counts(names, _draw(by_document, draws, seed))))
    (whole, drawn), (whole_second, drawn_second) = sides
    n = len(documents)
    return {
        name: _interval((metric(whole_second) - metric(whole))[0], metric(drawn_second) - metric(drawn), n)
        for name, metric in metrics.items()
    }


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Exact binomial test on the rows where just one of the two is right (McNemar 1947; two-sided, p ≤ 1)."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} rows against {len(second)}")
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    total = only_first + only_second
    return McNemar(
        only_first, only_second, min(1.0, 2 * binomial_at_most(min(only_first, only_second), total, 0.5))
    )


def binomial_at_most(successes: int, trials: int, chance: float) -> float:
    """P(X ≤ successes) for X ~ Binomial(trials, chance)."""
    if successes >= trials:
        return 1.0
    log_yes, log_no = math.log(chance), math.log1p(-chance)
    total = math.lgamma(trials + 1)
    logs = [
        total - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_yes + (trials - k) * log_no
        for k in range(successes + 1)
    ]
    return min(1.0, math.fsum(math.exp(one) for one in logs))


def _sum_by_document(counts: Counts, documents: Sequence[str]) -> tuple[list[str], NDArray[np.float64]]:
    """Sums [documents, counts]: documents in order of first appearance, so that draws don't hang on their names."""
    if not documents:
        raise TunesmithError("there are no rows to score")
    wrong = {name: len(values) for name, values in counts.items() if len(values) != len(documents)}
    if wrong:
        raise ValueError(f"{len(documents)} rows, but counts of other lengths: {wrong}")
    place = {name: i for i, name in enumerate(dict.fromkeys(documents))}
    rows = np.array([place[name] for name in documents])
    sums = np.zeros((len(place), len(counts)))
    for column, values in enumerate(counts.values()):
        sums[:, column] = np.bincount(rows, weights=np.asarray(values, float), minlength=len(place))
    return list(counts), sums


def _draw(by_document: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Sums over documents drawn with replacement: [draws, counts]."""
    total = len(by_document)
    random = np.random.Generator(np.random.PCG64(seed))
    block = max(1, _BLOCK // total)
    parts = []
    for begin in range(0, draws, block):
        size = min(block, draws - begin)
        chosen = random.integers(total, size=(size, total))
        cells = (chosen + total * np.arange(size)[:, None]).ravel()
        weights = np.bincount(cells, minlength=size * total).reshape(size, total)
        parts.append(weights @ by_document)
    return np.concatenate(parts)


def _as_counts(names: list[str], sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {name: sums[:, column] for column, name in enumerate(names)}


def _interval(value: Any, drawn: NDArray[np.float64], n: int) -> Interval:
    kept = drawn[~np.isnan(drawn)]  # a draw in which a metric has no denominator says nothing about it
    if math.isnan(value) or not len(kept):
        return Interval(float(value), math.nan, math.nan, n)
    low, high = np.percentile(kept, [2.5, 97.5])
    return Interval(float(value), float(low), float(high), n)
