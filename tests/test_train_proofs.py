"""The proofs of training on a real engine; and for each the mutant that it has to catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_project import make_project, prepare_run
from torch import Tensor

from tunesmith.base import resolve
from tunesmith.engine.protocol import PackedBatch, StepSums
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.model.lora import adapters
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.train import adapter, proofs
from tunesmith.train.build import build_model, steps_of, stored_plan
from tunesmith.train.order import Order

Made = tuple[Recipe, Run, ReferenceEngine, Rows, list[int]]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An engine with an adapter that does something, and four rows."""
    folder = tmp_path_factory.mktemp("proofs")
    recipe, run = prepare_run(make_project(folder, model={"dtype": request.param}), folder / "runs")
    engine = ReferenceEngine(build_model(recipe, resolve(recipe.model), torch.device("cpu")), recipe)
    torch.manual_seed(0)
    for layer in adapters(engine.model):
        with torch.no_grad():
            layer.B.normal_(0, 0.3)
    rows = Rows.open(run.data, "train")
    return recipe, run, engine, rows, proofs.sample(rows, range(20))


class Bleeding(ReferenceEngine):
    """Bare concatenation: no borders between rows, positions that go on."""

    def __init__(self, engine: ReferenceEngine) -> None:
        vars(self).update(vars(engine))

    def logits(self, batch: PackedBatch) -> Tensor:
        total = batch.tokens
        ends = torch.tensor([0, total], dtype=torch.int32)
        return super().logits(
            dataclasses.replace(batch, cu_seqlens=ends, max_length=total, positions=torch.arange(total))
        )


class OffByOne(ReferenceEngine):
    """Borders one token too early: each row sees the last token of the row before."""

    def __init__(self, engine: ReferenceEngine) -> None:
        vars(self).update(vars(engine))

    def logits(self, batch: PackedBatch) -> Tensor:
        shifted = batch.cu_seqlens.clone()
        shifted[1:-1] -= 1
        return super().logits(dataclasses.replace(batch, cu_seqlens=shifted))


class BatchMean(ReferenceEngine):
    """Each micro-batch counts the same, whatever its number of learned tokens."""

    def __init__(self, engine: ReferenceEngine) -> None:
        vars(self).update(vars(engine))

    def step(self, batch: PackedBatch, scale: float) -> StepSums:
        return super().step(batch, 1.0 / batch.learned_tokens)


def test_packed_equals_unpacked_and_bare_concatenation_fails_it(made: Made) -> None:
    recipe, _, engine, rows, numbers = made
    dtype = getattr(torch, recipe.model.dtype)
    assert proofs.packed_equals_unpacked(engine, rows, numbers, dtype).passed
    assert not proofs.packed_equals_unpacked(Bleeding(engine), rows, numbers, dtype).passed
    assert not proofs.packed_equals_unpacked(OffByOne(engine), rows, numbers, dtype).passed


def test_accumulation_is_exact_and_a_per_batch_mean_fails_it(made: Made) -> None:
    recipe, _, engine, rows, numbers = made
    dtype = getattr(torch, recipe.model.dtype)
    proof = proofs.accumulation_is_exact(engine, rows, numbers, dtype)
    assert proof.passed and not engine.parameters.grad.any()
    assert not proofs.accumulation_is_exact(BatchMean(engine), rows, numbers, dtype).passed


def test_an_adapter_without_effect_fails(made: Made) -> None:
    _, _, engine, rows, numbers = made
    assert proofs.adapter_has_effect(engine, engine.model, rows, numbers).passed
    kept = engine.parameters.data.clone()
    one, *rest = adapters(engine.model)
    with torch.no_grad():
        one.B.zero_()
    partly = proofs.adapter_has_effect(engine, engine.model, rows, numbers)
    assert not partly.passed and f"B is all zeros in 1 of {len(rest) + 1} modules" in partly.detail
    with torch.no_grad():
        for layer in rest:
            layer.B.zero_()
    nothing = proofs.adapter_has_effect(engine, engine.model, rows, numbers)
    assert not nothing.passed and nothing.figure == 0.0
    engine.parameters.data.copy_(kept)


def test_the_written_adapter_reloads_and_another_one_fails(made: Made) -> None:
    recipe, run, engine, rows, numbers = made
    base = resolve(recipe.model)

    def reload(spoil: Callable[[], None]) -> bool:
        fresh = ReferenceEngine(build_model(recipe, base, torch.device("cpu")), recipe)
        fresh.parameters.data.copy_(engine.parameters.data)
        adapter.write_adapter(recipe, run, base, fresh.model, fresh.parameters, {})
        spoil()
        return proofs.adapter_reloads(
            fresh, rows, numbers, lambda: adapter.read_adapter(run, fresh.model, fresh.parameters)
        ).passed

    def another_scale() -> None:
        path = run.adapter / "adapter_config.json"
        path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))

    assert reload(lambda: None)
    assert not reload(another_scale)


def test_the_sample_is_short_rows(tmp_path: Path, made: Made) -> None:
    _, _, _, rows, numbers = made
    assert len(numbers) == 4
    assert max(rows.lengths[numbers]) <= min(rows.lengths[n] for n in range(20) if n not in numbers)


def test_what_is_cut_of_a_row_holds_what_it_teaches() -> None:
    """Of 90 tokens only the 41st to 50th are learned: 20 tokens up to the last of them, not the last 20."""
    learned = np.zeros(90, bool)
    learned[40:50] = True
    rows: Any = SimpleNamespace(ids=lambda n: np.arange(90), learned=lambda n: learned)
    found = proofs._cut(rows, [0], 20, step=1)
    assert found.ids.tolist() == list(range(30, 50)) and found.learned_tokens == 10
    assert proofs._cut(rows, [0], 20, step=1, positions=3).targets.tolist() == [17, 18, 19]
    assert proofs._cut(rows, [0], 5, step=1).learned_tokens == 4  # nothing comes before the first


def test_a_copy_of_a_large_gradient_is_bounded(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs hold two of them beside each other, on a card that is full."""
    engine = made[2]
    monkeypatch.setattr(proofs, "_ENTRIES", 100)
    engine.parameters.grad.fill_(2.0)
    assert 100 <= len(proofs._taken(engine)) < 200 and not engine.parameters.grad.any()
    _, gradient = proofs._stepped(engine, made[3], made[4], fp8=False)  # type: ignore[arg-type]
    assert 100 <= len(gradient) < 200 and bool(gradient.any())


@pytest.mark.parametrize(
    ("section", "key", "value"), [("train", "max_steps", 1), ("train", "epochs", 1.0), ("", "seed", 7)]
)
def test_another_order_of_rows_has_another_plan(made: Made, section: str, key: str, value: float) -> None:
    """A plan's memory is that of the steps it was made for."""
    recipe, run, engine, rows, _ = made

    def plan(wanted: Recipe) -> bool:
        train = wanted.train
        order = Order(
            len(rows), batch=train.batch, seed=wanted.seed, epochs=train.epochs, max_steps=train.max_steps
        )
        return stored_plan(wanted, run, engine, rows.lengths, lambda: steps_of(order, rows, 1))[1]

    plan(recipe)
    assert plan(recipe)
    inner = getattr(recipe, section).model_copy(update={key: value}) if section else None
    assert not plan(recipe.model_copy(update={section: inner} if section else {key: value}))
