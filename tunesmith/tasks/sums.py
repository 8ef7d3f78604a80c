"""Metrics as functions of counts summed over rows, vectorised over bootstrap draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Sums = Mapping[str, NDArray[np.float64]]
"""Name of a count → its sums [draws]."""
Metric = Callable[[Sums], NDArray[np.float64]]


class Share:
    """A metric that lies between 0 and 1, whose interval at either end is an exact bound (statistics.py)."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def __call__(self, sums: Sums) -> NDArray[np.float64]:
        """Sums [draws] → values [draws]."""
        return self.metric(sums)


def ratio(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    """`over / under`, NaN where `under` is 0."""
    over, under = np.broadcast_arrays(np.asarray(over, float), np.asarray(under, float))
    made: NDArray[np.float64] = np.full(over.shape, np.nan)
    np.divide(over, under, out=made, where=under != 0)
    return made


def mean(count: str) -> Metric:
    """The mean over rows of a count that is 0 to 1 in each."""
    return Share(lambda sums: ratio(sums[count], sums["rows"]))
