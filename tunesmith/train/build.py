"""From the recipe to an engine: the base with what is trained on it, and the stored micro-batch plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith import console
from tunesmith.base import Base
from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_fits import why_no_fp8, why_not, why_slow
from tunesmith.engine.fused_warm import warm_up
from tunesmith.engine.plan import evenly
from tunesmith.engine.protocol import Engine, MicroBatchPlan, Step
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.errors import ModelError, RecipeError, SetupError
from tunesmith.model.adapter import load_adapter
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapters, add_lora, choose, linears
from tunesmith.recipe import Recipe, Tune
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.train.order import Order


def build_model(recipe: Recipe, base: Base, device: torch.device) -> PreTrainedModel:
    """Loads the base and puts what is trained on it."""
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    console.note(f"loading {base.name} ({recipe.model.dtype}, quantize: {recipe.model.quantize}) on {device}")
    with warm_up(recipe, base, device):
        model = load_model(base, dtype=dtype, quantize=recipe.model.quantize, device=device)
    if recipe.tune.method == "full":
        model.requires_grad_(True)
    elif recipe.tune.from_adapter:
        wanted = set(choose(linears(model), recipe.tune.target_modules))
        load_adapter(model, Path(recipe.tune.from_adapter), dropout=recipe.tune.dropout)
        _require_same_shape(
            recipe.tune, [(layer.rank, layer.alpha, layer.rslora) for layer in adapters(model)]
        )
        found = {layer.name for layer in adapters(model)}
        if found != wanted:
            names = sorted({name.rpartition(".")[2] for name in found})
            raise RecipeError(
                f"the adapter stands beside {', '.join(names)}; tune.target_modules says otherwise",
                where="tune.target_modules",
                fix=f"set tune.target_modules: [{', '.join(names)}]",
            )
    else:
        add_lora(model, recipe.tune, recipe.seed)
    return model


def choose_engine(recipe: Recipe, model: PreTrainedModel) -> Engine:
    """The engine that the recipe names; auto takes the fused one where it fits and gains, and says why not else.

    fp8 is asked for by name: where it can't be had, training doesn't begin.
    """
    wanted = recipe.train.engine
    against = why_not(recipe, model)
    if recipe.train.fp8:
        return _fp8_engine(recipe, model, against or why_no_fp8(model))
    if wanted == "fused":
        if against:
            raise SetupError(
                f"the fused engine can't train this: {against}",
                where="train.engine",
                fix="set train.engine: auto",
            )
        return FusedEngine(model, recipe)
    if wanted == "reference":
        return ReferenceEngine(model, recipe)
    against = against or why_slow(model)
    if against is None:
        try:
            engine = FusedEngine(model, recipe)
        except ModelError as error:
            against = error.what
        else:
            console.note("engine: fused")
            return engine
    console.note(f"engine: reference (not the fused one: {against})")
    return ReferenceEngine(model, recipe)


def _fp8_engine(recipe: Recipe, model: PreTrainedModel, against: str | None) -> Engine:
    if recipe.train.engine == "auto":
        against = against or why_slow(model)
    if against:
        raise SetupError(f"fp8 can't be had here: {against}", where="train.fp8", fix="set train.fp8: false")
    engine = FusedEngine(model, recipe)
    console.note(
        "engine: fused, frozen weights in fp8 (inexact; validation and proofs use the exact weights)"
    )
    return engine


def _require_same_shape(tune: Tune, found: list[tuple[int, float, bool]]) -> None:
    """An adapter keeps its own rank and scaling; the recipe may not say otherwise."""
    for rank, alpha, rslora in found:
        if (rank, alpha, rslora) != (tune.rank, tune.alpha, tune.rslora):
            raise RecipeError(
                f"the adapter has rank {rank}, alpha {alpha:g}, rslora {str(rslora).lower()}; the recipe says "
                f"{tune.rank}, {tune.alpha:g}, {str(tune.rslora).lower()}",
                where="tune.from_adapter",
                fix=f"set tune.rank: {rank}, tune.alpha: {alpha:g}, tune.rslora: {str(rslora).lower()}",
            )


def steps_of(order: Order, rows: Rows, ranks: int) -> list[Step] | None:
    """The run's steps, each rank's share as a step of its own."""
    steps = order.taken(rows.lengths, rows.learned_counts)
    if steps is None or ranks == 1:
        return steps
    return [
        Step([step.lengths[i] for i in own], [step.learned[i] for i in own])
        for step in steps
        for own in evenly(step.lengths, ranks)
        if own
    ]


def stored_plan(
    recipe: Recipe,
    run: Run,
    engine: Engine,
    lengths: NDArray[np.int64],
    steps: Callable[[], list[Step] | None] = lambda: None,
) -> tuple[MicroBatchPlan, bool]:
    """The Run's plan, or a new one where there is none or the settings it was made for have changed.

    `steps` gives those that this device will take, for a plan of what will really occur.

    Also says whether it is the stored one: another plan adds in another order.
    """
    made_for = recipe.train.model_dump(
        mode="json",
        include={
            "batch", "micro_batch", "memory", "recompute", "packing", "engine", "fp8", "optimizer",
            "epochs", "max_steps",
        },
    )  # fmt: skip
    made_for["seed"] = recipe.seed  # with those two it decides which rows meet in a step
    made_for |= {"model": recipe.model.model_dump(mode="json"), "tune": recipe.tune.model_dump(mode="json")}
    made_for["lengths"] = hashlib.sha256(np.ascontiguousarray(lengths, dtype="<i8").tobytes()).hexdigest()
    path = run.data / "plan.json"
    stored = run.read_json(path)
    if stored.get("made_for") == made_for:
        return MicroBatchPlan.from_json(stored["plan"]), True
    plan = engine.plan(lengths, steps())
    run.write_json(path, {"made_for": made_for, "plan": plan.to_json()})
    return plan, False
