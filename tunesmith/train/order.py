"""Which rows a step trains on: a pure function of (seed, epoch), so nothing about it has to be saved.

The permutation sorts raw 64-bit words of numpy's Philox counter generator. Raw words of a bit generator are the
same in every numpy version (`Generator.permutation` promises no such thing).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from tunesmith.engine.plan import Step

_MANY = 100_000  # steps: of more, planning assumes the worst instead of looking at each


def permutation(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """Row numbers 0..rows-1 in the order of an epoch (counted from 0). Philox: Salmon et al., SC 2011."""
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64)).random_raw(rows)
    return np.argsort(words, kind="stable")


class Order:
    """Rows of each optimiser step. Steps count from 1; the last, smaller batch of an epoch is a step of its own."""

    def __init__(self, rows: int, *, batch: int, seed: int, epochs: float, max_steps: int | None) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self.steps_per_epoch = -(-rows // batch)
        by_epochs = max(1, math.ceil(epochs * self.steps_per_epoch - 1e-9))
        self.steps = min(by_epochs, max_steps) if max_steps else by_epochs
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that a step belongs to."""
        return (step - 1) // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last of its epoch."""
        return step % self.steps_per_epoch == 0

    def numbers(self, step: int) -> NDArray[np.int64]:
        """Row numbers of a step."""
        epoch = self.epoch(step)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, permutation(self.seed, epoch, self.rows)
        begin = (step - 1) % self.steps_per_epoch * self.batch
        return self._permutation[begin : begin + self.batch]

    def sha256(self, step: int) -> str:
        """Hash of the permutation that a step draws from: compared on resume."""
        self.numbers(step)
        return hashlib.sha256(self._permutation.astype("<i8").tobytes()).hexdigest()

    def taken(self, lengths: NDArray[np.int64], learned: NDArray[np.int64]) -> list[Step] | None:
        """What each step of the run takes of rows of these tokens and learned tokens; None for too many steps."""
        if self.steps > _MANY:
            return None
        numbers = (self.numbers(step) for step in range(1, self.steps + 1))
        return [Step(lengths[n].tolist(), learned[n].tolist()) for n in numbers]
