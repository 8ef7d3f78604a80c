"""Proofs of training: at the start on the run's own rows, at the end on the adapter that was written.

Limits come from noise measured in the same run, by a variation that the fault in question can't touch: a row that
stands first in a stream sees nothing of the others, whatever is wrong with the borders; a step whose rows are
reversed inside one micro-batch has the same sums, whatever is wrong with accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.engine.protocol import Engine, PackedBatch, pack, pack_sequences
from tunesmith.model.lora import adapters, adapters_off
from tunesmith.proof import Proof
from tunesmith.rows import Rows

_SLACK = 4.0  # times the measured noise
_POSITIONS = 32  # of a row whose logits are compared
_ENTRIES = 1 << 22  # of a gradient that are compared


def sample(rows: Rows, numbers: Sequence[int], count: int = 4) -> list[int]:
    """A few short rows among `numbers`: proofs are to be cheap."""
    lengths = rows.lengths
    return sorted(numbers, key=lambda n: (lengths[n], n))[:count]


def packed_equals_unpacked(engine: Engine, rows: Rows, numbers: Sequence[int], dtype: torch.dtype) -> Proof:
    """Each row's logits in a stream with others against its logits alone, relative to their size."""
    alone = {n: engine.logits(_short(rows, [n])) for n in numbers}
    first, later = [0.0], [0.0]
    for i in range(len(numbers)):
        turned = [*numbers[i:], *numbers[:i]]
        packed = torch.split(engine.logits(_short(rows, turned)), [len(alone[n]) for n in turned])
        for place, (n, logits) in enumerate(zip(turned, packed, strict=True)):
            (later if place else first).append(float((logits - alone[n]).norm() / alone[n].norm()))
    figure, limit = max(later), _SLACK * max(first) + 4 * torch.finfo(dtype).eps + 1e-5
    detail = (
        f"relative distance of a row's logits packed and alone, {len(numbers)} rows; noise {max(first):.2g}"
    )
    return Proof("packed_equals_unpacked", figure <= limit, figure, limit, detail)


def accumulation_is_exact(engine: Engine, rows: Rows, numbers: Sequence[int], dtype: torch.dtype) -> Proof:
    """The gradient of some rows one by one against all at once, relative to its norm."""
    learned = sum(pack(rows, [n], step=1).learned_tokens for n in numbers)
    together = _gradient(engine, rows, [list(numbers)], learned)
    turned = _gradient(engine, rows, [list(reversed(numbers))], learned)
    singly = _gradient(engine, rows, [[n] for n in numbers], learned)
    norm = together.norm().clamp(min=1e-30)
    noise, figure = float((turned - together).norm() / norm), float((singly - together).norm() / norm)
    limit = _SLACK * noise + 16 * torch.finfo(dtype).eps + 1e-4
    detail = f"relative difference of the gradient of {len(numbers)} rows one by one and at once; noise {noise:.2g}"
    return Proof("accumulation_exact", figure <= limit, figure, limit, detail)


def adapter_reloads(engine: Engine, rows: Rows, numbers: Sequence[int], reload: Callable[[], None]) -> Proof:
    """Logits as trained against logits after all trained weights were wiped and read back from the written folder."""
    batch = _short(rows, numbers)
    trained = engine.logits(batch)
    noise = _distance(engine.logits(batch), trained)
    engine.parameters.data.fill_(0.01)
    reload()
    figure = _distance(engine.logits(batch), trained)
    detail = f"largest difference of a logit before and after reading the folder back, {len(numbers)} rows"
    return Proof("adapter_reloads", figure <= _SLACK * noise, figure, _SLACK * noise, detail)


def adapter_has_effect(engine: Engine, model: nn.Module, rows: Rows, numbers: Sequence[int]) -> Proof:
    """Logits with the adapter against the base's own; and no B may be all zeros."""
    batch = _short(rows, numbers)
    tuned = engine.logits(batch)
    noise = _distance(engine.logits(batch), tuned)
    with adapters_off(model):
        figure = _distance(engine.logits(batch), tuned)
    zeros = [layer.name for layer in adapters(model) if not bool(layer.B.any())]
    limit = f"> {_SLACK * noise:.2g}"
    detail = f"largest difference of a logit with and without the adapter, {len(numbers)} rows"
    if zeros:
        detail += f"; B is all zeros in {len(zeros)} of {len(adapters(model))} modules, e.g. {zeros[0]}"
    return Proof("adapter_has_effect", figure > _SLACK * noise and not zeros, figure, limit, detail)


def _short(rows: Rows, numbers: Sequence[int]) -> PackedBatch:
    """Whole rows, of which only the last learned tokens count: logits are wide."""
    learned = [rows.learned(n).copy() for n in numbers]
    for mask in learned:
        mask[np.flatnonzero(mask)[:-_POSITIONS]] = False
    return pack_sequences([rows.ids(n) for n in numbers], learned, numbers, step=0)


def _gradient(engine: Engine, rows: Rows, batches: Sequence[Sequence[int]], learned: int) -> Tensor:
    engine.parameters.zero_grad()
    for numbers in batches:
        engine.step(pack(rows, numbers, step=1), scale=1.0 / max(learned, 1))
    flat = engine.parameters.grad
    found = flat[:: max(1, flat.numel() // _ENTRIES)].double()
    engine.parameters.zero_grad()
    return found


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
