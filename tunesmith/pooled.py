"""Runs that differ by nothing but their seed, taken together: one estimate, whose interval holds both kinds of luck.

The estimate is the mean over seeds, each on the same rows. Which documents were scored and which seeds were trained are
two samples, crossed: every seed answered every document. The variance is that of the mean over draws of documents (the
same documents for all seeds) and, beside it, that of the seeds' own values divided by how many there are. The interval
is Student's with Satterthwaite's degrees of freedom (1946, "An approximate distribution of estimates of variance
components"): drawing three seeds again and again knows three values alone and comes out too narrow (docs/adr/0006).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.statistics import Drawn, Interval
from tunesmith.tasks.sums import Metric, Share

FEW_SEEDS = 3  # below which nothing can be told of how much a seed matters
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A value over one or more seeds."""

    interval: Interval
    of_documents: float
    """Variance of the value that comes from which documents were scored. NaN of one document."""
    of_seeds: float
    """Variance that comes from which seeds were trained; 0 where there is one of each side, so that nobody knows."""
    freedom: float
    """Degrees of freedom of both together."""
    seeds: tuple[float, ...]
    """The value of each seed; of a difference those of the second side (of the first where only that has several)."""

    @property
    def half_width(self) -> float:
        """Half of the interval."""
        return (self.interval.high - self.interval.low) / 2

    @property
    def smallest(self) -> float:
        """The smallest difference that such rows and seeds show in four of five tries (5 % two-sided)."""
        return self._reach * math.sqrt(self.of_documents + self.of_seeds)

    def documents_for(self, difference: float, documents: int) -> int | None:
        """Documents like these `documents` that would show `difference` in four of five tries.

        None where it is 0 or unknown, or where the seeds' own luck hides it from any number of documents.
        """
        left = (difference / self._reach) ** 2 - self.of_seeds
        wanted = self.of_documents / left if left > 0 else math.nan
        return math.ceil(documents * wanted) if math.isfinite(wanted) else None

    @property
    def _reach(self) -> float:
        return _student(0.975, self.freedom) + _student(POWER, self.freedom)


def pooled(drawn: Drawn, systems: Sequence[str], metric: Metric) -> Estimate:
    """The mean of a metric over systems that are one recipe's seeds."""
    return _estimate(drawn, (), systems, metric)


def pooled_difference(drawn: Drawn, first: Sequence[str], second: Sequence[str], metric: Metric) -> Estimate:
    """The mean over the seeds of `second` less that over the seeds of `first`, the same documents drawn for all."""
    return _estimate(drawn, first, second, metric)


def _estimate(drawn: Drawn, first: Sequence[str], second: Sequence[str], metric: Metric) -> Estimate:
    sides = [np.array([drawn.value(name, metric) for name in side]) for side in (first, second) if side]
    draws = _mean_draws(drawn, second, metric)
    if first:
        draws = draws - _mean_draws(drawn, first, metric)
    value = float(sides[-1].mean() - (sides[0].mean() if first else 0.0))
    seeds = next((side for side in reversed(sides) if len(side) > 1), sides[-1])
    of_documents = _variance(draws, drawn.effective)
    parts = [(float(side.var(ddof=1)) / len(side), len(side) - 1.0) for side in sides if len(side) > 1]
    of_seeds = sum(variance for variance, _ in parts)
    freedom = _satterthwaite([(of_documents, drawn.effective - 1), *parts])
    if parts:
        reach = _student(0.975, freedom) * math.sqrt(of_documents + of_seeds)
        low, high = value - reach, value + reach
        if isinstance(metric, Share) and not first:
            low, high = max(low, 0.0), min(high, 1.0)
        interval = Interval(value, low, high, drawn.rows)
    elif first:
        interval = drawn.difference(first[0], second[0], metric)
    else:
        interval = drawn.interval(second[0], metric)
    return Estimate(interval, of_documents, of_seeds, freedom, tuple(float(seed) for seed in seeds))


def _mean_draws(drawn: Drawn, systems: Sequence[str], metric: Metric) -> NDArray[np.float64]:
    made: NDArray[np.float64] = np.mean([drawn.values(name, metric) for name in systems], axis=0)
    return made


def _variance(draws: NDArray[np.float64], effective: float) -> float:
    """Of the estimate over documents: draws of few documents vary by (n − 1) / n too little."""
    kept = draws[~np.isnan(draws)]
    if effective <= 1 or len(kept) < 2:
        return math.nan
    return float(kept.var() * effective / (effective - 1))


def _satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """`parts`: (variance, its degrees of freedom)."""
    total = sum(variance for variance, _ in parts)
    under = sum(variance**2 / freedom for variance, freedom in parts if variance > 0)
    return total**2 / under if under > 0 else parts[0][1]


def _student(share: float, freedom: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share)) if freedom > 0 else math.nan
