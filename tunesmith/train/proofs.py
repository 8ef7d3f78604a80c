"""Proofs of training: at the start on the run's own rows, at the end on the adapter that was written.

Limits come from noise measured in the same run, by a variation that the fault in question can't touch: a row that
stands first in a stream sees nothing of the others, whatever is wrong with the borders; a step whose rows are
reversed inside one micro-batch has the same sums, whatever is wrong with accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_fp8_distance import product_errors
from tunesmith.engine.protocol import Engine, PackedBatch, pack, pack_sequences
from tunesmith.model.lora import adapters, adapters_off
from tunesmith.proof import Proof
from tunesmith.rows import Rows

_SLACK = 4.0  # times the measured noise
_POSITIONS = 32  # of a row whose logits are compared
_ENTRIES = 1 << 22  # of a gradient that are compared
# fp8's limits. Numbers of 3 bits make a product's error 0.04 whatever the model; a loss moves by 0.1 to 0.8 %
_PRODUCT, _NATS, _SHARE = 0.1, 0.02, 0.02


def sample(rows: Rows, numbers: Sequence[int], count: int = 4) -> list[int]:
    """A few short rows among `numbers`: proofs are to be cheap."""
    lengths = rows.lengths
    return sorted(numbers, key=lambda n: (lengths[n], n))[:count]


def packed_equals_unpacked(engine: Engine, rows: Rows, numbers: Sequence[int], dtype: torch.dtype) -> Proof:
    """Each row's logits in a stream with others against its logits alone, relative to their size."""
    most = _most(rows, numbers)
    alone = {n: engine.logits(_short(rows, [n], most)) for n in numbers}
    first, later = [0.0], [0.0]
    for i in range(len(numbers)):
        turned = [*numbers[i:], *numbers[:i]]
        packed = torch.split(engine.logits(_short(rows, turned, most)), [len(alone[n]) for n in turned])
        for place, (n, logits) in enumerate(zip(turned, packed, strict=True)):
            (later if place else first).append(float((logits - alone[n]).norm() / alone[n].norm()))
    figure, limit = max(later), _SLACK * max(first) + 4 * torch.finfo(dtype).eps + 1e-5
    detail = (
        f"relative distance of a row's logits packed and alone, {len(numbers)} rows; noise {max(first):.2g}"
    )
    return Proof("packed_equals_unpacked", figure <= limit, figure, limit, detail)


def accumulation_is_exact(engine: Engine, rows: Rows, numbers: Sequence[int], dtype: torch.dtype) -> Proof:
    """The gradient of some rows one by one against all at once, relative to its norm.

    By exact products: in fp8 a last bit that differs makes now and then a difference of a whole step of 3 bits.
    """
    most = _most(rows, numbers)
    together = _gradient(engine, rows, [list(numbers)], most)
    turned = _gradient(engine, rows, [list(reversed(numbers))], most)
    singly = _gradient(engine, rows, [[n] for n in numbers], most)
    norm = together.norm().clamp(min=1e-30)
    noise, figure = float((turned - together).norm() / norm), float((singly - together).norm() / norm)
    limit = _SLACK * noise + 16 * torch.finfo(dtype).eps + 1e-4
    detail = f"relative difference of the gradient of {len(numbers)} rows one by one and at once; noise {noise:.2g}"
    return Proof("accumulation_exact", figure <= limit, figure, limit, detail)


def fused_equals_reference(engine: FusedEngine) -> Proof:
    """What the fused engine compared with autograd before it was used; beyond the limit another engine trains."""
    apart, limit = engine.gradient_apart, engine.gradient_limit
    detail = (
        "largest relative distance of an adapter's gradient from autograd's through transformers' layers; "
        f"hidden states {engine.hidden_apart:.2g}"
    )
    return Proof("fused_equals_reference", apart <= limit, apart, limit, detail)


def adapter_reloads(engine: Engine, rows: Rows, numbers: Sequence[int], reload: Callable[[], None]) -> Proof:
    """Logits as trained against logits after all trained weights were wiped and read back from the written folder."""
    batch = _short(rows, numbers, _most(rows, numbers))
    trained = engine.logits(batch)
    noise = _distance(engine.logits(batch), trained)
    engine.parameters.data.fill_(0.01)
    reload()
    figure = _distance(engine.logits(batch), trained)
    detail = f"largest difference of a logit before and after reading the folder back, {len(numbers)} rows"
    return Proof("adapter_reloads", figure <= _SLACK * noise, figure, _SLACK * noise, detail)


def adapter_has_effect(engine: Engine, model: nn.Module, rows: Rows, numbers: Sequence[int]) -> Proof:
    """Logits with the adapter against the base's own; and no B may be all zeros."""
    batch = _short(rows, numbers, _most(rows, numbers))
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


def fp8_products(engine: FusedEngine) -> Proof:
    """Each frozen product in fp8, both ways, against the exact one, on random rows of very different sizes.

    Rounding to 8 bits costs the same everywhere, whatever the model; a wrong scale or another layer's copy costs more.
    """
    errors = dict(product_errors(engine))
    worst = max(errors, key=lambda name: errors[name])
    passed = all(error <= _PRODUCT for error in errors.values())  # and none is NaN
    detail = (
        f"largest relative distance of a product in fp8 from the exact one ({worst}), {len(errors)} products"
    )
    return Proof("fp8_products", passed, errors[worst], _PRODUCT, detail)


def fp8_matches_bf16(engine: FusedEngine, rows: Rows, numbers: Sequence[int]) -> Proof:
    """The loss per learned token of training steps in fp8 against exact ones, row by row with equal dropout."""
    (ours, by_ours), (told, by_told) = (_stepped(engine, rows, numbers, fp8=fp8) for fp8 in (True, False))
    learned = sum(pack(rows, [n], step=1).learned_tokens for n in numbers)
    apart, loss = ours - told, float(told.sum()) / learned
    noise = float(apart.std(ddof=1)) * len(numbers) ** 0.5 / learned if len(numbers) > 1 else 0.0
    figure, limit = abs(float(apart.sum())) / learned, max(_NATS, _SHARE * loss) + 2 * noise
    detail = (
        f"nats of loss a token in fp8 and exact ({loss:.4g}), {len(numbers)} rows; noise {noise:.2g}; "
        f"cosine of the gradients {float(torch.cosine_similarity(by_ours, by_told, dim=0)):.4f}"
    )
    return Proof("fp8_matches_bf16", figure <= limit, figure, limit, detail)


def _stepped(
    engine: FusedEngine, rows: Rows, numbers: Sequence[int], *, fp8: bool
) -> tuple[NDArray[np.float64], Tensor]:
    """Losses of the rows and the gradient of their sum; each row alone, because the longest fits on any card."""
    engine.parameters.zero_grad()
    with _products(engine, fp8=fp8):
        losses = np.array([engine.step(pack(rows, [n], step=1), scale=1.0).loss.item() for n in numbers])
    return losses, _taken(engine)


def _products(engine: Engine, *, fp8: bool) -> AbstractContextManager[None]:
    """Within, steps are in fp8 or exact; an engine that knows no fp8 is exact anyway."""
    return engine.products(fp8=fp8) if isinstance(engine, FusedEngine) else nullcontext()


def _most(rows: Rows, numbers: Sequence[int]) -> int:
    """Tokens of a row, so that all together are no more than the longest row, which fits on any card."""
    return max(2, int(rows.lengths.max()) // len(numbers))


def _cut(
    rows: Rows, numbers: Sequence[int], most: int, step: int, positions: int | None = None
) -> PackedBatch:
    """At most so many tokens of each row, up to its last learned one; of these the last `positions` count, or all."""
    ids, learned = [], []
    for n in numbers:
        mask = rows.learned(n)
        end = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else len(mask)
        part = slice(max(0, end - most), end)
        own = mask[part].copy()
        if positions is not None:
            own[np.flatnonzero(own)[:-positions]] = False
        ids.append(rows.ids(n)[part])
        learned.append(own)
    return pack_sequences(ids, learned, numbers, step)


def _short(rows: Rows, numbers: Sequence[int], most: int) -> PackedBatch:
    """Of which only the last learned tokens count: logits are wide."""
    return _cut(rows, numbers, most, step=0, positions=_POSITIONS)


def _gradient(engine: Engine, rows: Rows, batches: Sequence[Sequence[int]], most: int) -> Tensor:
    packed = [_cut(rows, batch, most, step=1) for batch in batches]
    learned = sum(batch.learned_tokens for batch in packed)
    engine.parameters.zero_grad()
    with _products(engine, fp8=False):
        for batch in packed:
            engine.step(batch, scale=1.0 / max(learned, 1))
    return _taken(engine)


def _taken(engine: Engine) -> Tensor:
    """The gradient, or some entries of a large one: a copy for comparing. It is zero then."""
    flat = engine.parameters.grad
    found = flat[:: max(1, flat.numel() // _ENTRIES)].double()
    engine.parameters.zero_grad()
    return found


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
