"""The reference engine in fp64: how rows are laid out changes no loss and no gradient. Each rule with its mutant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import KINDS, tiny
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tunesmith.engine.head import chunk_rows
from tunesmith.engine.protocol import MicroBatchPlan, PackedBatch, StepSums, pack_sequences
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.errors import ModelError
from tunesmith.model.attention import register
from tunesmith.model.lora import adapters, add_lora
from tunesmith.recipe import Data, Model, Recipe, Train, Tune

LIMIT = 1e-10
ROWS = 8


def recipe(*, dropout: float = 0.1, **train: Any) -> Recipe:
    return Recipe(
        name="test",
        model=Model(base="starter"),
        data=Data(train="starter"),
        tune=Tune(rank=4, alpha=8, dropout=dropout),
        train=Train(**train),
    )


def engine(
    kind: str = "llama", *, dtype: torch.dtype = torch.float64, dropout: float = 0.1, **train: Any
) -> ReferenceEngine:
    """A tiny model with adapters whose halves are both random, so that every gradient is."""
    model = tiny(kind, dtype=dtype, attention=register())
    wanted = recipe(dropout=dropout, **train)
    add_random_lora(model, wanted.tune)
    return ReferenceEngine(model, wanted)


def add_random_lora(model: PreTrainedModel, tune: Tune) -> None:
    """Adapters whose halves are both random."""
    add_lora(model, tune, 0)
    generator = torch.Generator().manual_seed(3)
    for adapter in adapters(model):
        for parameter in (adapter.A, adapter.B):
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
            parameter.data = values.to(parameter.dtype)


def rows() -> tuple[list[list[int]], list[list[bool]]]:
    """Eight ragged rows, the last part of each learned."""
    generator = np.random.default_rng(4)
    lengths = [5, 23, 9, 1 + 1, 17, 12, 30, 8]
    ids = [generator.integers(1, 96, n).tolist() for n in lengths]
    return ids, [[t >= len(row) // 3 for t in range(len(row))] for row in ids]


def batch(numbers: Sequence[int], step: int = 7) -> PackedBatch:
    ids, learned = rows()
    return pack_sequences([ids[n] for n in numbers], [learned[n] for n in numbers], numbers, step)


def total(trainer: ReferenceEngine, groups: Sequence[Sequence[int]], step: int = 7) -> tuple[float, Tensor]:
    """Loss and gradient of one optimiser step, its rows in these micro-batches: what the loop does."""
    batches = [batch(group, step) for group in groups]
    learned = sum(b.learned_tokens for b in batches)
    trainer.parameters.zero_grad()
    loss = sum(trainer.step(b, 1.0 / learned).loss.item() for b in batches) / learned
    return loss, trainer.parameters.grad.clone()


def distance(a: tuple[float, Tensor], b: tuple[float, Tensor]) -> float:
    """Largest difference of loss or gradient, the gradient's relative to its largest element."""
    return max(abs(a[0] - b[0]), ((a[1] - b[1]).abs().max() / b[1].abs().max()).item())


ALL = [list(range(ROWS))]
ONE_BY_ONE = [[n] for n in range(ROWS)]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_one_by_one(kind: str) -> None:
    trainer = engine(kind)
    assert distance(total(trainer, ALL), total(trainer, ONE_BY_ONE)) < LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_padded(kind: str) -> None:
    assert distance(total(engine(kind), ALL), total(engine(kind, packing=False), ALL)) < LIMIT


@pytest.mark.parametrize(
    "groups", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[7, 2, 5], [0], [6, 1, 4, 3]], [ALL[0][::-1]]]
)
def test_micro_batches_change_nothing(groups: list[list[int]]) -> None:
    trainer = engine()
    assert distance(total(trainer, groups), total(trainer, ALL)) < LIMIT
    rectangles = engine(packing=False)
    assert distance(total(rectangles, groups), total(rectangles, ALL)) < LIMIT


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("recompute", [("full", "full"), ("full", "none"), ("none", "full")])
def test_recomputing_changes_nothing(packing: bool, recompute: tuple[str, ...]) -> None:
    trainer = engine(packing=packing)
    told = total(trainer, ALL)
    names = [name for name, _ in trainer.model.named_parameters()]
    trainer.use(MicroBatchPlan(tokens=100, rows=None, recompute=recompute))
    found = total(trainer, ALL)
    assert told[0] == found[0] and torch.equal(told[1], found[1])
    assert [name for name, _ in trainer.model.named_parameters()] == names
    trainer.use(MicroBatchPlan(tokens=100, rows=None, recompute=("none", "none")))
    assert not any(type(layer).__name__ == "_Recomputed" for layer in trainer.model.model.layers)


def test_recomputing_keeps_less() -> None:
    """The mutant of the test above: a wrapper that recomputes nothing would pass it."""

    def kept(trainer: ReferenceEngine) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t
        ):
            trainer._hidden(batch(range(ROWS)))
        return sum(sizes.values())

    plain, recomputing = engine(), engine()
    recomputing.use(MicroBatchPlan(tokens=100, rows=None, recompute=("full", "full")))
    assert kept(recomputing) < 0.5 * kept(plain)


def test_dropout_is_on_and_follows_seed_and_step() -> None:
    trainer = engine()
    told = total(trainer, ALL, step=7)
    assert distance(told, total(trainer, ALL, step=7)) == 0.0
    assert distance(told, total(trainer, ALL, step=8)) > 1e-3
    assert distance(told, total(engine(dropout=0.0), ALL)) > 1e-3


# ---- the mutants: each breaks one rule, and the same comparison must see it


def test_mutant_bare_concatenation() -> None:
    """No document limits: tokens see the rows before theirs."""

    class Bare(ReferenceEngine):
        def _run(self, ids: Tensor, positions: Tensor, attention: Any) -> Tensor:
            whole = torch.tensor([0, ids.shape[1]], dtype=torch.int32)
            return super()._run(ids, positions, type(attention)(whole, ids.shape[1]))

    _must_differ(Bare)


def test_mutant_positions_that_do_not_restart() -> None:
    """Rotary positions are relative, so only the rounding of their tables tells; the limit is below that."""

    class Counting(ReferenceEngine):
        def _run(self, ids: Tensor, positions: Tensor, attention: Any) -> Tensor:
            return super()._run(ids, torch.arange(ids.shape[1])[None], attention)

    _must_differ(Counting, 10 * LIMIT)


def test_mutant_dropout_by_place_in_the_stream() -> None:
    class ByStream(ReferenceEngine):
        def _dropping(self, batch: PackedBatch) -> Any:
            from dataclasses import replace

            stream = torch.arange(batch.tokens)
            return super()._dropping(replace(batch, positions=stream))

    _must_differ(ByStream)


def test_mutant_mean_of_the_batch() -> None:
    """Each micro-batch divided by its own count: rows with few learned tokens weigh too much."""

    class Mean(ReferenceEngine):
        def step(self, batch: PackedBatch, scale: float) -> StepSums:
            learned = sum(rows_learned)
            return super().step(batch, scale * learned / batch.learned_tokens)

    rows_learned = [batch([n]).learned_tokens for n in range(ROWS)]
    _must_differ(Mean)


def _must_differ(kind: type[ReferenceEngine], by: float = 1e-3) -> None:
    plain = engine()
    mutant = kind(plain.model, plain.recipe)
    assert distance(total(mutant, ALL), total(mutant, ONE_BY_ONE)) > by


# ---- the referee: transformers' own eager attention and autograd, row by row


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_transformers(kind: str) -> None:
    trainer = engine(kind, dropout=0.0)
    told_loss, told_grad = _by_transformers(kind, trainer)
    loss, grad = total(trainer, ALL)
    assert abs(loss - told_loss) < 1e-6 and (grad - told_grad).abs().max() < 1e-6 * told_grad.abs().max()
    nll_R, learned_R = trainer.row_losses(batch(range(ROWS)))
    assert (
        learned_R.tolist() == [batch([n]).learned_tokens for n in range(ROWS)]
        and nll_R.dtype == torch.float64
    )
    assert abs(nll_R.sum().item() / learned_R.sum().item() - told_loss) < 1e-6
    alone = torch.cat([trainer.row_losses(batch([n]))[0] for n in range(ROWS)])
    assert (nll_R - alone).abs().max() < 1e-9
    whole = batch(range(ROWS))
    by_logits = cross_entropy(trainer.logits(whole).double(), whole.ids[whole.targets])
    assert abs(by_logits.item() - told_loss) < 1e-5 and trainer.logits(whole).dtype == torch.float32


def _by_transformers(kind: str, trainer: ReferenceEngine) -> tuple[float, Tensor]:
    """The adapters folded into the weights: d loss / d A = s Bᵀ dW, d loss / d B = s dW Aᵀ."""
    model = tiny(kind, dtype=torch.float64)
    found = adapters(trainer.model)
    with torch.no_grad():
        for adapter in found:
            model.get_submodule(adapter.name).weight += adapter.scaling * adapter.B @ adapter.A
    ids, learned = rows()
    loss = torch.zeros((), dtype=torch.float64)
    count = 0
    for row, mask in zip(ids, learned, strict=True):
        targets = torch.tensor([t for t in range(1, len(row)) if mask[t]])
        logits = model(torch.tensor([row]), use_cache=False).logits[0]
        loss = loss + cross_entropy(logits[targets - 1], torch.tensor(row)[targets], reduction="sum")
        count += len(targets)
    (loss / count).backward()
    parts = []
    for adapter in found:
        dw = model.get_submodule(adapter.name).weight.grad
        parts += [adapter.scaling * adapter.B.T @ dw, adapter.scaling * dw @ adapter.A.T]
    return loss.item() / count, torch.cat([part.flatten() for part in parts])


# ---- the head


def test_head_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = engine()
    told = total(trainer, ALL)
    monkeypatch.setattr("tunesmith.engine.head.chunk_rows", lambda vocabulary, device: 5)
    assert distance(total(trainer, ALL), told) < LIMIT


def test_logits_never_exist_at_once() -> None:
    assert chunk_rows(128_256, "cuda") * 128_256 * 4 <= 256 << 20
    assert chunk_rows(128_256, "cpu") == 32


@pytest.mark.parametrize("where", ["config", "forward"])
def test_logits_that_are_changed_after_the_head_are_refused(where: str) -> None:
    model = tiny(attention=register())
    if where == "config":
        model.config.final_logit_softcapping = 30.0
    else:
        model.__class__ = type("Capped", (type(model),), {"forward": _capped})
    with pytest.raises(ModelError, match="after the head"):
        ReferenceEngine(model, recipe())


def _capped(self: PreTrainedModel, **kwargs: Any) -> Any:
    out = super(type(self), self).forward(**kwargs)
    out.logits = 30 * torch.tanh(out.logits / 30)
    return out


# ---- batches


def test_a_rows_first_token_is_no_target() -> None:
    """It would be predicted from the row before."""
    packed = pack_sequences([[1, 2], [3, 4, 5]], [[True, True], [True, True, False]], [4, 9], 0)
    assert packed.targets.tolist() == [1, 3] and packed.learned_tokens == 2
    assert packed.positions.tolist() == [0, 1, 0, 1, 2] and packed.cu_seqlens.tolist() == [0, 2, 5]
    assert packed.row_of.tolist() == [0, 0, 1, 1, 1] and packed.max_length == 3


def test_a_batch_without_learned_tokens_adds_nothing() -> None:
    trainer = engine()
    empty = pack_sequences([[1, 2, 3]], [[False] * 3], [0], 0)
    assert trainer.step(empty, 1.0).loss.item() == 0.0 and not trainer.parameters.grad.any()
    assert trainer.row_losses(empty)[0].tolist() == [0.0]


def test_rows_of_a_run(tmp_path: Path) -> None:
    """`pack` reads what prepare has written."""
    from tunesmith.contract import Encoded
    from tunesmith.engine.protocol import pack
    from tunesmith.example import Example, Message
    from tunesmith.rows import Rows, write_rows

    ids, learned = rows()
    examples = [
        Example(str(n), (Message("user", "q"), Message("assistant", "a", True)), str(n), {}, f"f:{n}")
        for n in range(ROWS)
    ]
    write_rows(
        tmp_path,
        "train",
        zip(examples, [Encoded(*pair) for pair in zip(ids, learned, strict=True)], strict=True),
    )
    packed, told = pack(Rows.open(tmp_path, "train"), [3, 1], 7), batch([3, 1])
    for name in ("ids", "positions", "cu_seqlens", "learned", "targets", "rows", "row_of"):
        assert torch.equal(getattr(packed, name), getattr(told, name)), name
