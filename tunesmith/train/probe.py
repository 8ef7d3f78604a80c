"""The longest micro-batch of the run, once, before step 1: a lack of memory shows now and not at step 900."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.engine.plan import evenly
from tunesmith.engine.protocol import Engine, MicroBatchPlan, pack
from tunesmith.rows import Rows
from tunesmith.train.order import Order

_STEPS = 20_000  # looked through at most; a later epoch's largest is hardly larger


def largest_micro_batch(
    order: Order, plan: MicroBatchPlan, lengths: NDArray[np.int64], ranks: int = 1
) -> list[int]:
    """Row numbers of the micro-batch, of any rank, with the most tokens (cells, where rows are padded)."""
    most, largest = 0, list[int]()
    for step in range(1, min(order.steps, _STEPS) + 1):
        numbers = order.numbers(step)
        for share in evenly(lengths[numbers].tolist(), ranks):
            for part in plan.split(lengths[numbers[share]].tolist()):
                rows = numbers[share][part]
                own = lengths[rows]
                cells = int(own.max()) * len(part) if plan.padded else int(own.sum())
                if cells > most:
                    most, largest = cells, rows.tolist()
    return largest


def probe(engine: Engine, rows: Rows, numbers: list[int]) -> None:
    """Forward and backward of these rows; the gradients are thrown away, so no result changes."""
    engine.step(pack(rows, numbers, step=0), scale=1.0)
    engine.parameters.zero_grad()
