"""The stage: rows and a base become `adapter/`, metrics and proofs. The same call again goes on where it ended."""

from __future__ import annotations

import hashlib
import shutil
from typing import Any, cast

import torch
from torch import nn

from tunesmith import console
from tunesmith.base import Base, resolve
from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.protocol import Engine, MicroBatchPlan, pack
from tunesmith.errors import OutOfRoom, RunChanged, SetupError, Stopped
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.train import adapter, environment, proofs, scaling
from tunesmith.train.build import build_model, choose_engine, steps_of, stored_plan
from tunesmith.train.checkpoint import Checkpoint, Checkpoints
from tunesmith.train.faults import room
from tunesmith.train.log import Log, NoLog
from tunesmith.train.loop import Loop
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.order import Order
from tunesmith.train.parallel import ALONE, Ranks, leave
from tunesmith.train.probe import largest_micro_batch, probe
from tunesmith.train.schedule import Schedule
from tunesmith.train.signals import StopRequest
from tunesmith.train.state import State
from tunesmith.train.step import Stepper
from tunesmith.train.trackers import open_trackers
from tunesmith.train.validate import batches


def train(recipe: Recipe, run: Run, ranks: Ranks = ALONE) -> None:
    """Trains until the recipe's end. Raises Stopped (75) on a signal, OutOfRoom, NotFinite, ProofFailed.

    Of several ranks all train, and the first alone writes.
    """
    base = resolve(recipe.model)
    rows = Rows.open(run.data, "train")
    checkpoints = Checkpoints(run.checkpoints, run=_identity(rows, base), keep=recipe.train.keep)
    found = None
    if ranks.first:
        checkpoints.clean()
        adapter.clean(run)
        found = checkpoints.newest()
    found = ranks.told(found)
    state = State.from_json(found.state) if found else State()
    if state.finished and not ranks.first:
        leave(ranks)
        return
    if state.finished and adapter.is_current(run, _about(checkpoints, state)) and _proved(run):
        console.note(f"training ended at step {state.step} already")
        return
    with room(lambda: "setting up", resumable=lambda: bool(checkpoints.steps())):
        device = environment.choose_device()
        environment.set_up(deterministic=recipe.train.deterministic, threads=_threads(found, ranks))
        environment.hold_to(recipe.train.memory, device)
        model = build_model(recipe, base, device)
        engine = choose_engine(_shared(recipe, ranks), model)
        with StopRequest(speaks=ranks.size == 1) as stop:
            try:
                if not state.finished:
                    _train(recipe, run, engine, rows, checkpoints, found, state, stop, ranks)
                leave(ranks)
                if ranks.first:
                    _finish(recipe, run, base, model, engine, rows, checkpoints, state)
            finally:
                environment.release(device)
            if stop.signal and ranks.size == 1:
                raise Stopped(
                    f"stopped by {stop.signal.name} after training had ended", fix="the same command goes on"
                )


def _train(
    recipe: Recipe,
    run: Run,
    engine: Engine,
    rows: Rows,
    checkpoints: Checkpoints,
    found: Checkpoint | None,
    state: State,
    stop: StopRequest,
    ranks: Ranks,
) -> None:
    """From `found` (or the start) to the last step."""
    settings, lengths = recipe.train, rows.lengths
    device = engine.parameters.data.device
    order = Order(
        len(rows),
        batch=settings.batch,
        seed=recipe.seed,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
    )
    schedule = Schedule.of(settings.schedule, settings.learning_rate, settings.warmup, order.steps)
    if schedule.warmup >= order.steps > 1:
        console.warn(
            f"train.warmup: {schedule.warmup} steps of warm-up, but only {order.steps} steps in all: "
            "the learning rate never falls"
        )
    if ranks.told(type(engine)) is not type(engine):
        raise SetupError(
            f"rank {ranks.rank} can't use the engine that rank 0 uses", fix="set train.engine: reference"
        )
    ranks.add(engine.parameters.grad)  # zeros: NCCL takes its memory now, and the probe sees what is left
    made = (
        stored_plan(_shared(recipe, ranks), run, engine, lengths, lambda: steps_of(order, rows, ranks.size))
        if ranks.first
        else None
    )
    plan, same_plan = cast(tuple[MicroBatchPlan, bool], ranks.told(made))
    engine.use(plan)
    console.note(f"plan: {plan.note}")
    optimizer = Optimizer(settings.optimizer, engine.parameters, weight_decay=settings.weight_decay)
    now = environment.describe(device, deterministic=settings.deterministic, ranks=ranks.size)
    history: list[dict[str, Any]] = []
    if found:
        if found.state["order_sha256"] != order.sha256(found.step):
            raise RunChanged(
                "the order of the rows is not the one this run was started with", where=str(run.data)
            )
        _read_weights(engine, found)
        optimizer.load(found.tensors("optimizer"))
        reasons = [] if same_plan else ["the micro-batch plan has changed"]
        reasons += environment.why_inexact(found.state["environment"], now)
        console.note(
            f"resumed at step {found.step} (exact: {'no: ' + '; '.join(reasons) if reasons else 'yes'})"
        )
        history = [*found.state["resumes"], {"step": found.step, "exact": not reasons, "reasons": reasons}]
    else:
        scaling.start(state, recipe.model.dtype)
        if ranks.first:
            _prove_start(recipe, run, engine, rows, order)
    largest = largest_micro_batch(order, plan, lengths, ranks.size)
    with room(
        lambda: (
            f"the probe of the longest micro-batch: row lengths {sorted(int(lengths[n]) for n in largest)}"
        ),
        resumable=lambda: found is not None,
    ):
        probe(engine, rows, largest)
    validation = Rows.open(run.data, "validation") if Rows.exists(run.data, "validation") else None
    if validation:  # its rows may be longer than those of training, for which the plan was made
        first = next(batches(validation.lengths, plan))
        with room(
            lambda: f"the probe of the longest validation rows: {validation.lengths[first].tolist()} tokens",
            resumable=lambda: found is not None,
        ):
            engine.row_losses(pack(validation, first, step=0))
    _require_disk(checkpoints, engine, optimizer)
    stepper = Stepper(
        engine=engine,
        plan=plan,
        rows=rows,
        order=order,
        schedule=schedule,
        optimizer=optimizer,
        clip=settings.clip,
        state=state,
        scaled=recipe.model.dtype == "float16",
        ranks=ranks,
        last_good=lambda: max(checkpoints.steps(), default=None),
    )
    keep = state.step if state.closed else state.step - 1
    with (
        Log(run, keep=keep, device=device, trackers=open_trackers(recipe, run)) if ranks.first else NoLog()
    ) as log:
        record = {"environment": now, "resumes": history}
        Loop(settings, run, stepper, validation, checkpoints, record, log, stop).train()


def _finish(
    recipe: Recipe,
    run: Run,
    base: Base,
    model: nn.Module,
    engine: Engine,
    rows: Rows,
    checkpoints: Checkpoints,
    state: State,
) -> None:
    """The best checkpoint becomes `adapter/`, and what was written is proved."""
    chosen = checkpoints.at(_chosen(checkpoints, state)) or checkpoints.newest()
    if chosen is None:
        raise OutOfRoom("no checkpoint is whole any more", where=str(checkpoints.folder), fix="train again")
    _read_weights(engine, chosen)
    adapter.write_adapter(recipe, run, base, model, engine.parameters, _about(checkpoints, state))
    if isinstance(engine, FusedEngine) and engine.fp8:
        run.prove(proofs.fp8_matches_bf16(engine, rows, proofs.sample(rows, range(len(rows)), 16)))
    numbers = proofs.sample(rows, range(len(rows)))
    if recipe.tune.method == "lora":
        run.prove(proofs.adapter_has_effect(engine, model, rows, numbers))
    run.prove(
        proofs.adapter_reloads(
            engine, rows, numbers, lambda: adapter.read_adapter(run, model, engine.parameters)
        )
    )
    which = "lowest validation loss" if state.best_step else "last step"
    console.note(f"adapter: step {chosen.step} ({which}) in {run.adapter.name}/")


def _prove_start(recipe: Recipe, run: Run, engine: Engine, rows: Rows, order: Order) -> None:
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    numbers = proofs.sample(rows, order.numbers(1).tolist())
    if isinstance(engine, FusedEngine):
        run.prove(proofs.fused_equals_reference(engine))
    if isinstance(engine, FusedEngine) and engine.fp8:
        run.prove(proofs.fp8_products(engine))
        run.prove(proofs.fp8_matches_bf16(engine, rows, proofs.sample(rows, range(len(rows)), 16)))
    if len(numbers) > 1:
        run.prove(proofs.packed_equals_unpacked(engine, rows, numbers, dtype))
        run.prove(proofs.accumulation_is_exact(engine, rows, numbers, dtype))


def _shared(recipe: Recipe, ranks: Ranks) -> Recipe:
    """The recipe as the planner is to see it: a step of one rank holds its share of the rows."""
    batch = -(-recipe.train.batch // ranks.size)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch": batch})})


def _threads(found: Checkpoint | None, ranks: Ranks) -> int | None:
    """Those of the run's first start; None where it had another number of ranks, which share the cores."""
    if found is None or found.state["environment"].get("ranks", 1) != ranks.size:
        return None
    threads: int = found.state["environment"]["threads"]
    return threads


def _proved(run: Run) -> bool:
    return any(proof["name"] == "adapter_reloads" and proof["passed"] for proof in run.proofs())


def _read_weights(engine: Engine, checkpoint: Checkpoint) -> None:
    """A checkpoint's weights into the flat buffer; RunChanged when names or shapes are another model's."""
    saved, views = checkpoint.tensors("weights"), engine.parameters.views
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in views.items()}:
        raise RunChanged(
            "the checkpoint's weights are not those that the recipe trains",
            where=str(checkpoint.folder),
            fix="--fork starts another run beside it",
        )
    for name, view in views.items():
        view.copy_(saved[name])


def _chosen(checkpoints: Checkpoints, state: State) -> int:
    """The best by validation loss; without validation rows the last."""
    return state.best_step if state.best_step in checkpoints.steps() and state.best_step else state.step


def _about(checkpoints: Checkpoints, state: State) -> dict[str, Any]:
    return {
        "run": checkpoints.run,
        "step": _chosen(checkpoints, state),
        "steps": state.step,
        "validation_loss": state.best_loss,
        "learned_tokens": state.learned_tokens,
    }


def _identity(rows: Rows, base: Base) -> str:
    return hashlib.sha256(f"{rows.sha256} {base.fingerprint}".encode()).hexdigest()


def _require_disk(checkpoints: Checkpoints, engine: Engine, optimizer: Optimizer) -> None:
    """Room for the checkpoints that are kept, the best and the one being written, before hours are spent."""
    tensors = [engine.parameters.data, *optimizer.tensors().values()]
    many = checkpoints.keep + 2
    need = many * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    free = shutil.disk_usage(checkpoints.folder).free
    if free < need:
        raise OutOfRoom(
            f"{many} checkpoints take {need / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free",
            where=str(checkpoints.folder),
            fix="make room, or choose another --runs-dir",
            resumable=bool(checkpoints.steps()),
        )
