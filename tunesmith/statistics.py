"""Intervals and tests for scores: bootstrap by document, paired differences, McNemar. numpy only.

Every metric is a function of sums over rows ("counts"), so a draw of documents is a weighted sum of counts: draws are
exact for ratios such as F1 or bits per byte, and cheap. Documents are drawn, never rows: rows of one document hang
together, and row-level intervals come out too narrow (Miller 2024, "Adding Error Bars to Evals").

Where every document has the same 0 or 1 of a share, so has every draw, and the bootstrap's interval has no width. There
the open side is the exact bound of Clopper and Pearson (1934, "The use of confidence or fiducial limits illustrated in
the case of the binomial") over documents: after n of n the lower 95 % limit of a share is 0.025^(1/n).
Differences keep the bootstrap's interval: a bound there would hide a merge that lost everything on few documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import TunesmithError
from tunesmith.tasks.sums import Metric, Share

Counts = Mapping[str, NDArray[np.float64]]
"""Name of a count → its value in each row [rows]."""

DRAWS = 2000
_TAIL = 0.025  # below and above a 95 % interval
_BLOCK = 4_000_000  # cells of the draws × documents matrix that are held at once


class Interval(NamedTuple):
    """A value with its 95 % interval over `n` rows. NaN where nothing could be counted; one document has none."""

    value: float
    low: float
    high: float
    n: int

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends; the value itself where there is no interval, so that one document has to agree wholly."""
        return (self.value, self.value) if math.isnan(self.low) else (self.low, self.high)

    def to_json(self) -> dict[str, float | int | None]:
        """NaN becomes null."""
        value, low, high = (None if math.isnan(x) else x for x in self[:3])
        return {"value": value, "low": low, "high": high, "n": self.n}


class McNemar(NamedTuple):
    """Rows that only one of two systems got right, and the exact two-sided p that both are equally good."""

    only_first: int
    only_second: int
    p: float


class SignTest(NamedTuple):
    """Documents in which one of two systems has more rows right, and the exact two-sided p that both are as good."""

    first_better: int
    second_better: int
    equal: int
    p: float


def bootstrap(
    counts: Counts, documents: Sequence[str], metrics: Mapping[str, Metric], draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """Each metric with its interval. `counts`: name → [rows]; `documents`: one per row; same seed, same draws."""
    names, by_document = _sum_by_document(counts, documents)
    drawn = _as_counts(names, _draw(by_document, draws, seed))
    whole = _as_counts(names, by_document.sum(axis=0, keepdims=True))
    single = _as_counts(names, by_document)
    n, total = len(documents), len(by_document)
    made = {}
    for name, metric in metrics.items():
        found = _interval(metric(whole)[0], metric(drawn), n, total)
        made[name] = _open_side(found, metric(single)) if isinstance(metric, Share) else found
    return made


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
    n, total = len(documents), len(set(documents))
    made = {}
    for name, metric in metrics.items():
        value, draw = (metric(whole_second) - metric(whole))[0], metric(drawn_second) - metric(drawn)
        made[name] = _interval(value, draw, n, total)
    return made


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Exact binomial test on the rows where just one of the two is right (McNemar 1947; two-sided, p ≤ 1)."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} rows against {len(second)}")
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return McNemar(only_first, only_second, _fair_coin(only_first, only_second))


def sign_test(first: NDArray[np.bool_], second: NDArray[np.bool_], documents: Sequence[str]) -> SignTest:
    """Exact binomial test on the documents in which one of the two has more rows right (Dixon and Mood 1946).

    McNemar takes each row for a new observation; rows of one document are none. `first`, `second`: [rows].
    """
    _, by_document = _sum_by_document(
        {"first": first.astype(float), "second": second.astype(float)}, documents
    )
    over = by_document[:, 1] - by_document[:, 0]
    worse, better = int(np.sum(over < 0)), int(np.sum(over > 0))
    return SignTest(worse, better, int(np.sum(over == 0)), _fair_coin(worse, better))


def _fair_coin(heads: int, tails: int) -> float:
    """Two-sided p."""
    return min(1.0, 2 * binomial_at_most(min(heads, tails), heads + tails, 0.5))


def all_of(n: int) -> float:
    """Clopper and Pearson's lower 95 % limit of a share after n of n."""
    return math.pow(_TAIL, 1 / n)


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


def _interval(value: Any, drawn: NDArray[np.float64], n: int, total: int) -> Interval:
    """`total`: documents. One document drawn again and again is no sample of documents."""
    kept = drawn[~np.isnan(drawn)]  # a draw in which a metric has no denominator says nothing about it
    if math.isnan(value) or not len(kept) or total < 2:
        return Interval(float(value), math.nan, math.nan, n)
    low, high = np.percentile(kept, [100 * _TAIL, 100 * (1 - _TAIL)])
    return Interval(float(value), float(low), float(high), n)


def _open_side(found: Interval, single: NDArray[np.float64]) -> Interval:
    """A share that is 0 (or 1) in every document gets its exact bound. `single`: [documents], NaN where it has none."""
    counted = int(np.sum(~np.isnan(single)))
    if math.isnan(found.low) or found.low != found.high:
        return found
    if counted < 2:
        return found._replace(low=math.nan, high=math.nan)
    if found.value == 0:
        return found._replace(high=1 - all_of(counted))
    return found._replace(low=all_of(counted)) if found.value == 1 else found
