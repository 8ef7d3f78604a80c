"""Intervals and tests for scores: bootstrap by document, paired differences, McNemar. numpy only.

Every metric is a function of sums over rows ("counts"), so a draw of documents is a weighted sum of counts: draws are
exact for ratios such as F1 or bits per byte, and cheap. Documents are drawn, never rows: rows of one document hang
together, and row-level intervals come out too narrow (Miller 2024, "Adding Error Bars to Evals").

The interval is the expanded percentile interval (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"):
tails are those of Student's t, not 2.5 %, as draws of few documents are too much alike. Of documents of uneven size as
many count as their rows say (Kish 1965: the squared sum over the sum of squares). docs/adr/0006 has what was measured.

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
_TAIL = 0.025  # below and above a 95 % interval, were there very many documents
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


class Drawn:
    """One draw of documents that all systems, metrics and differences share.

    `systems`: system → name of a count → [rows]; `documents`: one per row. Sums over each draw are one product of
    weights and counts, made in blocks: memory is [documents, counts] and a block, whatever `draws` is.
    """

    def __init__(
        self, systems: Mapping[str, Counts], documents: Sequence[str], draws: int = DRAWS, seed: int = 0
    ) -> None:
        place = _places(documents)
        sizes = np.bincount(place)
        self.rows, self.documents = len(documents), len(sizes)
        self.effective = float(sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum())
        """Documents of even size that tell as much as these."""
        self._single = np.empty((self.documents, sum(map(len, systems.values()))))
        column = 0
        self._columns: dict[str, tuple[list[str], slice]] = {}
        for system, counts in systems.items():
            self._columns[system] = (list(counts), slice(column, column + len(counts)))
            _sum_by_document(counts, place, self._single[:, column : column + len(counts)])
            column += len(counts)
        self._whole = self._single.sum(axis=0, keepdims=True)
        self._drawn = _draw(self._single, draws, seed)

    def interval(self, system: str, metric: Metric) -> Interval:
        """A system's metric; where it is a share that every document has at the same end, its exact bound."""
        found = self._interval(
            metric(self._of(system, self._whole))[0], metric(self._of(system, self._drawn))
        )
        if not isinstance(metric, Share) or math.isnan(found.low) or found.low != found.high:
            return found
        return _open_side(found, metric(self._of(system, self._single)))

    def difference(self, first: str, second: str, metric: Metric) -> Interval:
        """`metric(second) - metric(first)`, the same documents drawn for both."""
        value, drawn = (
            metric(self._of(second, sums)) - metric(self._of(first, sums))
            for sums in (self._whole, self._drawn)
        )
        return self._interval(value[0], drawn)

    def value(self, system: str, metric: Metric) -> float:
        """The metric over all rows."""
        return float(metric(self._of(system, self._whole))[0])

    def values(self, system: str, metric: Metric) -> NDArray[np.float64]:
        """The metric in each draw [draws]; NaN where a draw has nothing to divide by."""
        return metric(self._of(system, self._drawn))

    def _of(self, system: str, sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        names, columns = self._columns[system]
        return dict(zip(names, sums[:, columns].T, strict=True))

    def _interval(self, value: Any, drawn: NDArray[np.float64]) -> Interval:
        return _interval(value, drawn, self.rows, self.effective)


def bootstrap(
    counts: Counts, documents: Sequence[str], metrics: Mapping[str, Metric], draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """Each metric with its interval. `counts`: name → [rows]; `documents`: one per row; same seed, same draws."""
    drawn = Drawn({"it": counts}, documents, draws, seed)
    return {name: drawn.interval("it", metric) for name, metric in metrics.items()}


def paired_difference(
    first: Counts, second: Counts, documents: Sequence[str], metric: Metric, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """`metric(second) - metric(first)` on the same rows, the same documents drawn for both."""
    return Drawn({"first": first, "second": second}, documents, draws, seed).difference(
        "first", "second", metric
    )


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Exact binomial test on the rows where just one of the two is right (McNemar 1947; two-sided, p ≤ 1)."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} rows against {len(second)}")
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return McNemar(only_first, only_second, _fair_coin(only_first, only_second))


def sign_test(first: NDArray[Any], second: NDArray[Any], documents: Sequence[str]) -> SignTest:
    """Exact binomial test on the documents in which one of the two has more rows right (Dixon and Mood 1946).

    McNemar takes each row for a new observation; rows of one document are none. `first`, `second`: [rows], right
    or in which share of the samples or seeds.
    """
    over = np.bincount(_places(documents), weights=second.astype(float) - first.astype(float))
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


def _places(documents: Sequence[str]) -> NDArray[np.int64]:
    """[rows]: the row's document, numbered in order of first appearance, so that draws don't hang on their names."""
    if not documents:
        raise TunesmithError("there are no rows to score")
    place = {name: i for i, name in enumerate(dict.fromkeys(documents))}
    return np.fromiter((place[name] for name in documents), np.int64, len(documents))


def _sum_by_document(counts: Counts, place: NDArray[np.int64], into: NDArray[np.float64]) -> None:
    """Fills `into` [documents, counts]."""
    wrong = {name: len(values) for name, values in counts.items() if len(values) != len(place)}
    if wrong:
        raise ValueError(f"{len(place)} rows, but counts of other lengths: {wrong}")
    for column, values in enumerate(counts.values()):
        into[:, column] = np.bincount(place, weights=np.asarray(values, float), minlength=len(into))


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
        parts.append(weights.astype(float) @ by_document)
    return np.concatenate(parts)


def _interval(value: Any, drawn: NDArray[np.float64], n: int, effective: float) -> Interval:
    """`effective`: documents. One document drawn again and again is no sample of documents."""
    kept = drawn[~np.isnan(drawn)]  # a draw in which a metric has no denominator says nothing about it
    if math.isnan(value) or not len(kept) or effective <= 1:
        return Interval(float(value), math.nan, math.nan, n)
    tail = expanded_tail(effective)
    low, high = np.quantile(kept, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high), n)


def expanded_tail(documents: float) -> float:
    """Share of draws below a 95 % interval: 0.025 of very many documents, 0.0086 of ten."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr(-math.sqrt(documents / (documents - 1)) * stdtrit(documents - 1, 1 - _TAIL)))


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
