"""Is a confidence worth anything? Calibration (ECE, Brier) and what setting the unsure answers aside would save.

ECE here has ten bins with equally many answers. Bins of equal width are mostly empty where a model is sure of nearly
everything, and weigh a handful of answers by chance; bins weighed alike, whatever they hold, do so too.
(Naeini, Cooper, Hauskrecht 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; Nixon et al. 2019,
"Measuring Calibration in Deep Learning"; Geifman, El-Yaniv 2017, "Selective Classification": risk and coverage.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import exp, fsum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.tasks.protocol import Table

BINS = 10
FEW = 100  # answers below which an ECE says next to nothing
_COVERAGE = (0.05, *(step / 10 for step in range(1, 11)))

Floats = NDArray[np.float64]


class Bin(NamedTuple):
    """Answers of neighbouring confidences."""

    confidence: float
    """Their mean."""
    right: float
    """Share of them that is right."""
    rows: int


class Measured(NamedTuple):
    """How good the confidences of n answers are."""

    n: int
    right: float
    """Share that is right."""
    confidence: float
    """Mean."""
    ece: float
    """Mean distance of confidence and share right over the bins, each weighed by its answers."""
    ece_by_chance: float
    """What a perfectly calibrated system would show on this many answers."""
    brier: float
    """Mean square of confidence minus right (1 or 0)."""
    aurc: float
    """Mean over all coverages of the share wrong among the surest; lower is better."""


def span_confidence(logprobs: Sequence[float], ends: Sequence[int], begin: int, end: int) -> float | None:
    """exp of the mean log-probability of the tokens that wrote characters [begin, end); None where none did.

    `ends`: the character behind each token. A token counts that holds any of these characters.
    """
    tokens = logprobs[bisect_right(ends, begin) : bisect_left(ends, end) + 1]
    return exp(fsum(tokens) / len(tokens)) if len(tokens) and end > begin else None


def measure(confidence: Sequence[float], right: Sequence[bool]) -> Measured:
    """All figures of n ≥ 1 answers."""
    sure, good = np.asarray(confidence, float), np.asarray(right, float)
    found = bins(confidence, right)
    weights = np.array([one.rows for one in found]) / len(sure)
    distance = np.array([abs(one.confidence - one.right) for one in found])
    return Measured(
        len(sure),
        float(good.mean()),
        float(sure.mean()),
        float(weights @ distance),
        _by_chance(sure),
        float(np.mean((sure - good) ** 2)),
        float(_risks(sure, good).mean()),
    )


def bins(confidence: Sequence[float], right: Sequence[bool], count: int = BINS) -> list[Bin]:
    """At most `count` bins with equally many answers (one more or less), from unsure to sure."""
    sure, good = _from_unsure(np.asarray(confidence, float), np.asarray(right, float))
    parts = np.array_split(np.arange(len(sure)), min(count, len(sure)))
    return [Bin(float(sure[part].mean()), float(good[part].mean()), len(part)) for part in parts]


def risk_coverage(confidence: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """(share of answers kept, share wrong among them), the surest kept first."""
    risks = _risks(np.asarray(confidence, float), np.asarray(right, float))
    kept = [max(1, round(share * len(risks))) for share in _COVERAGE]
    return [(one / len(risks), float(risks[one - 1])) for one in dict.fromkeys(kept)]


def tables(name: str, confidence: Sequence[float], right: Sequence[bool]) -> list[Table]:
    """A calibration table and a risk-coverage table; `name`: what is right or wrong. Empty for no answers."""
    if not len(confidence):
        return []
    found = measure(confidence, right)
    few = f" Fewer than {FEW} answers: read nothing into it." if found.n < FEW else ""
    note = (
        f"n = {found.n:,}. ECE {found.ece:.3f} ({BINS} bins with equally many answers; a perfectly calibrated model "
        f"would show about {found.ece_by_chance:.3f} on as many by chance alone), Brier score {found.brier:.3f}.{few}"
    )
    curve = (
        f"n = {found.n:,}. The surest are kept first. Wrong among all: {1 - found.right:.3f}; mean over all shares "
        f"kept (AURC): {found.aurc:.3f}, where confidences that know nothing would have {1 - found.right:.3f}.{few}"
    )
    return [
        Table(
            f"Calibration of {name}",
            ("confidence", "right", "rows"),
            tuple((one.confidence, one.right, one.rows) for one in bins(confidence, right)),
            note,
            kind="calibration",
        ),
        Table(
            f"Risk and coverage of {name}",
            ("share kept", "share wrong"),
            tuple(risk_coverage(confidence, right)),
            curve,
            kind="risk_coverage",
        ),
    ]


def _by_chance(sure: Floats) -> float:
    """Mean over bins of E|share right - confidence| where each answer is right with its confidence (normal)."""
    parts = np.array_split(np.sort(sure), min(BINS, len(sure)))
    spread = [np.sqrt((part * (1 - part)).sum()) for part in parts]  # of the number right in a bin
    return float(np.sqrt(2 / np.pi) * np.sum(spread) / len(sure))


def _risks(sure: Floats, good: Floats) -> Floats:
    """Share wrong among the 1, 2, … n surest."""
    _, good = _from_unsure(sure, good)
    wrong: Floats = np.cumsum(1 - good[::-1]) / np.arange(1, len(good) + 1)
    return wrong


def _from_unsure(sure: Floats, good: Floats) -> tuple[Floats, Floats]:
    """Sorted by confidence; among equal ones each is as right as their mean, so that order of rows means nothing."""
    values, place, times = np.unique(sure, return_inverse=True, return_counts=True)
    share = np.bincount(place, weights=good) / times
    return np.repeat(values, times), np.repeat(share, times)
