"""A row's loss and gradient among other rows against the same row alone.

The noise is that of a row which stands first in the stream: it sees nothing of the others, whatever is wrong with the
borders, while all shapes are those of the stream. The figure is that of a row which stands behind the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tunesmith.engine.protocol import Engine, pack_sequences
from tunesmith.proof import Proof
from tunesmith.rows import Rows

_SLACK = 4.0  # times the measured noise
_ENTRIES = 1 << 22  # of a gradient that are compared


def packed_trains_as_unpacked(
    engine: Engine, rows: Rows, numbers: Sequence[int], dtype: torch.dtype
) -> list[Proof]:
    """Two proofs, `packed_loss` and `packed_gradient`, relative to their size; gradients are zero afterwards."""
    losses, gradients = _Distances(), _Distances()
    for i, number in enumerate(numbers):
        others = [*numbers[:i], *numbers[i + 1 :]]
        loss, gradient = _of(engine, rows, [number], number)
        for place, order in (("first", [number, *others]), ("later", [*others, number])):
            packed_loss, packed_gradient = _of(engine, rows, order, number)
            losses.add(place, abs(packed_loss - loss) / max(abs(loss), 1e-30))
            gradients.add(
                place, float((packed_gradient - gradient).norm() / gradient.norm().clamp(min=1e-30))
            )
    eps = torch.finfo(dtype).eps
    return [
        losses.proof("packed_loss", 4 * eps + 1e-5, len(numbers)),
        gradients.proof("packed_gradient", 16 * eps + 1e-4, len(numbers)),
    ]


class _Distances:
    """The largest distance of a row that stands first, and of one that stands later."""

    def __init__(self) -> None:
        self.largest = {"first": 0.0, "later": 0.0}

    def add(self, place: str, distance: float) -> None:
        self.largest[place] = max(self.largest[place], distance if distance == distance else float("inf"))

    def proof(self, name: str, least: float, rows: int) -> Proof:
        noise, figure = self.largest["first"], self.largest["later"]
        limit = _SLACK * noise + least
        what = name.removeprefix("packed_")
        detail = (
            f"relative distance of a row's {what} behind other rows and alone, {rows} rows; noise {noise:.2g}"
        )
        return Proof(name, figure <= limit, figure, limit, detail)


def _of(engine: Engine, rows: Rows, order: Sequence[int], wanted: int) -> tuple[float, Tensor]:
    """Loss and gradient (a sample of its entries) of row `wanted`, in a stream of the rows `order`."""
    learned = [rows.learned(n) if n == wanted else np.zeros_like(rows.learned(n)) for n in order]
    batch = pack_sequences([rows.ids(n) for n in order], learned, order, step=1)
    engine.parameters.zero_grad()
    loss = float(engine.step(batch, scale=1.0 / max(batch.learned_tokens, 1)).loss)
    flat = engine.parameters.grad
    found = flat[:: max(1, flat.numel() // _ENTRIES)].double()
    engine.parameters.zero_grad()
    return loss, found
