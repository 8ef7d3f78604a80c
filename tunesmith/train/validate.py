"""The validation loss: over all validation rows, summed per token, whatever the batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tunesmith.engine.protocol import Engine, MicroBatchPlan, pack
from tunesmith.rows import Rows


def validation_loss(
    engine: Engine, rows: Rows, plan: MicroBatchPlan, stopped: Callable[[], bool] = lambda: False
) -> float | None:
    """Nats per learned token over all rows; None when `stopped()` says so between two batches."""
    lengths = rows.lengths
    losses = np.zeros(len(rows))
    learned = 0
    for numbers in batches(lengths, plan):
        if stopped():
            return None
        nll_R, learned_R = engine.row_losses(pack(rows, numbers, step=0))
        losses[numbers] = nll_R.numpy()
        learned += int(learned_R.sum())
    return math.fsum(losses) / max(learned, 1)  # fsum is exact: the order of the batches can't show


def batches(lengths: NDArray[np.int64], plan: MicroBatchPlan) -> Iterator[list[int]]:
    """All rows, the longest first, as many at a time as the plan allows."""
    batch: list[int] = []
    for number in np.argsort(-lengths, kind="stable").tolist():
        if batch and not _fits([*batch, number], lengths, plan):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _fits(batch: list[int], lengths: NDArray[np.int64], plan: MicroBatchPlan) -> bool:
    if plan.tokens is None:
        return plan.rows is None or len(batch) <= plan.rows
    cells = len(batch) * lengths[batch[0]] if plan.padded else lengths[batch].sum()
    return bool(cells <= plan.tokens)
