"""The learning rate: a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rises in a line to `peak` at step `warmup`, then falls; it would be 0 one step after the last."""

    kind: Literal["constant", "linear", "cosine"]
    peak: float
    warmup: int
    steps: int

    @classmethod
    def of(
        cls, kind: Literal["constant", "linear", "cosine"], peak: float, warmup: float, steps: int
    ) -> Schedule:
        """`warmup` in steps, or as a share of all steps when below 1."""
        return cls(kind, peak, math.ceil(warmup * steps) if warmup < 1 else int(warmup), steps)

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 1."""
        if step < self.warmup:
            return self.peak * step / self.warmup
        if self.kind == "constant":
            return self.peak
        gone = (step - self.warmup) / (self.steps - self.warmup + 1)
        return self.peak * ((1.0 - gone) if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * gone)))
