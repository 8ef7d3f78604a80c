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
from tunesmith.engine.protocol import FlatParameters, MicroBatchPlan, PackedBatch, StepSums, pack_sequences
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.errors import ModelError
from tunesmith.model.attention import register
from tunesmith.model.lora import adapters, add_lora, linears
from tunesmith.model.weights import Dense, FrozenLinear, quantized
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


# ---- full fine-tuning, flat parameters, narrow types


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "qwen2"])
def test_full_fine_tuning(kind: str) -> None:
    model, referee = tiny(kind, dtype=torch.float64, attention=register()), tiny(kind, dtype=torch.float64)
    trainer = ReferenceEngine(model, recipe())
    assert distance(total(trainer, ALL), total(trainer, ONE_BY_ONE)) < LIMIT
    ids, learned = rows()
    loss = torch.zeros((), dtype=torch.float64)
    for row, mask in zip(ids, learned, strict=True):
        targets = torch.tensor([t for t in range(1, len(row)) if mask[t]])
        logits = referee(torch.tensor([row]), use_cache=False).logits[0]
        loss = loss + cross_entropy(logits[targets - 1], torch.tensor(row)[targets], reduction="sum")
    (loss / batch(range(ROWS)).learned_tokens).backward()
    total(trainer, ALL)
    assert trainer.parameters.names == tuple(name for name, _ in referee.named_parameters())
    for name, parameter in referee.named_parameters():
        assert torch.allclose(trainer.parameters.grads[name], parameter.grad, rtol=1e-5, atol=1e-7), name


def test_full_fine_tuning_in_bf16_has_fp32_masters() -> None:
    model = tiny("llama_tied", dtype=torch.bfloat16, attention=register())
    trainer = ReferenceEngine(model, recipe())
    flat = trainer.parameters
    assert flat.data.dtype == flat.grad.dtype == torch.float32
    before = total(trainer, ALL)[0]
    assert all(p.grad is None for p in model.parameters()) and flat.grads["model.embed_tokens.weight"].any()
    small = (
        model.model.norm.weight[0].item() * 2.0**-10
    )  # less than half an ulp of bf16: kept by the master alone
    flat.data -= 0.05 * flat.grad / flat.grad.norm()
    flat.views["model.norm.weight"][0] += small
    assert total(trainer, ALL)[0] < before
    assert torch.equal(model.model.norm.weight, flat.views["model.norm.weight"].bfloat16())


def test_flat_parameters_are_views() -> None:
    trainer = engine(dtype=torch.float32)
    adapter = adapters(trainer.model)[3]
    trainer.parameters.data.fill_(0.25)
    assert adapter.A.eq(0.25).all() and adapter.A.grad is not None
    total(trainer, ALL)
    name = f"{adapter.name}.A"
    assert (
        torch.equal(adapter.A.grad, trainer.parameters.grads[name]) and trainer.parameters.grads[name].any()
    )
    assert trainer.parameters.data.numel() == sum(np.prod(shape) for shape in trainer.parameters.shapes)
    with pytest.raises(ValueError, match="nothing to train"):
        FlatParameters([])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_close(dtype: torch.dtype) -> None:
    told, found = total(engine(dtype=torch.float32), ALL), total(engine(dtype=dtype), ALL)
    cosine = torch.cosine_similarity(told[1], found[1], dim=0).item()
    assert abs(told[0] - found[0]) < 0.02 and cosine > 0.995


def test_loss_scale_keeps_small_fp16_gradients() -> None:
    """With 1/learned alone most of a confident token's gradient is below fp16's range; scaled, it is not."""
    told = total(engine(dtype=torch.float32), ALL)[1]
    trainer = engine(dtype=torch.float16)

    def error(factor: float) -> float:
        trainer.parameters.zero_grad()
        trainer.step(batch(range(ROWS)), factor / batch(range(ROWS)).learned_tokens)
        return ((trainer.parameters.grad / factor - told).norm() / told.norm()).item()

    assert error(2.0**8) < 0.05 < error(2.0**-14)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_quantised_base_trains_as_its_dense_image(how: str) -> None:
    """Loss and gradients are those of a dense base that holds the rounded weights; evaluating changes nothing."""
    wanted = recipe()
    trainers = []
    for dense in (False, True):
        model = tiny("qwen2", attention=register())
        for name in linears(model):
            linear = model.get_submodule(name)
            weight = quantized(linear.weight.detach(), how)
            if dense:
                weight = Dense(weight.dequantize(torch.float32))
            parent, _, leaf = name.rpartition(".")
            bias = None if linear.bias is None else linear.bias.detach()
            setattr(model.get_submodule(parent), leaf, FrozenLinear(weight, bias))
        add_lora(model, wanted.tune, 0)
        trainers.append(ReferenceEngine(model, wanted))
        trainers[-1].parameters.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
    told, before = total(trainers[1], ALL), total(trainers[0], ALL)
    assert distance(before, told) < 1e-5
    assert distance(total(trainers[0], ONE_BY_ONE), told) < 1e-5
    trainers[0].row_losses(batch(range(ROWS)))
    after = total(trainers[0], ALL)
    assert before[0] == after[0] and torch.equal(before[1], after[1])


def test_the_engines_plan_covers_its_layers_and_rows() -> None:
    trainer = engine()
    found = trainer.plan(np.array([5, 5000, 30]))
    assert found.tokens == 5000 and found.recompute == ("none", "none")
    trainer.use(found)
    with pytest.raises(ValueError, match="3 layers"):
        trainer.use(MicroBatchPlan(tokens=1, rows=None, recompute=("none",) * 3))


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
