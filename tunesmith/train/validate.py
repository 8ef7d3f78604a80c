"""The validation loss: over all validation rows, summed per token, whatever the batches and the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.engine.protocol import Engine, MicroBatchPlan, pack
from tunesmith.rows import Rows
from tunesmith.train.parallel import ALONE, Ranks


def validation_loss(
    engine: Engine,
    rows: Rows,
    plan: MicroBatchPlan,
    stopped: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> float | None:
    """Nats per learned token over all rows; None when `stopped()`, in which all ranks agree, says so between batches.

    Ranks take turns with the batches, which are the same however many there are.
    """
    found = torch.zeros(2, len(rows), dtype=torch.float64)  # loss and learned tokens of each row
    turns = list(batches(rows.lengths, plan))
    for first in range(0, len(turns), ranks.size):
        if stopped():
            return None
        for numbers in turns[first + ranks.rank : first + ranks.rank + 1]:  # none for some, in the last round
            nll_R, learned_R = engine.row_losses(pack(rows, numbers, step=0))
            found[0, numbers], found[1, numbers] = nll_R, learned_R.double()
    ranks.add(found)  # each row has one rank that knows it: nothing is rounded
    losses, learned = found[0].tolist(), int(found[1].sum())
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
