"""Stage evaluate: base and tuned answer the same rows; floors beside them; predictions, likelihoods, report, proof."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from tunesmith import console
from tunesmith.answers import answer_rows
from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.errors import ModelError, OutOfRoom, ProofFailed
from tunesmith.evaluate.floors import as_lines, majority, nearest
from tunesmith.evaluate.likelihood import GoldRow, gold_rows, nats
from tunesmith.evaluate.report import LIKELIHOOD_FILE, write_report
from tunesmith.evaluate.stops import answers_stop
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.lora import adapters_off
from tunesmith.model.tuned import default_device, load_as_trained, load_tuned
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run, write_atomic
from tunesmith.tasks import Task
from tunesmith.tasks.score import check_golds, score_predictions
from tunesmith.view.scored import ScoredRows, run_decoding, run_task, scored_rows

FLOOR_ROWS = 100_000  # training rows among which the nearest is looked for, evenly spread


def evaluate(recipe: Recipe, run: Run) -> None:
    """Fills `run.predictions` and `run.report`; the proof `answers_stop` fails after the report is written."""
    scored, task = scored_rows(recipe, run), run_task(recipe, run)
    check_golds(task, scored.examples)  # before a model is loaded
    contract = Contract.load(run.contract_folder)
    if not any(run.adapter.glob("*.safetensors")):
        raise ModelError(
            "there is nothing to evaluate yet",
            where=str(run.adapter),
            fix="train first: tunesmith run RECIPE",
        )
    _write_floors(run, task, scored)
    gold = gold_rows(scored.rows, scored.numbers, contract)
    nll: dict[str, list[float]] = {}
    with _room():
        for name, model in _systems(recipe, run):
            _answer(recipe, run, name, model, scored, task, contract)
            nll[name] = nats(_measuring(model, recipe), gold)
    _write_likelihood(run, scored, gold, nll)
    failure = _prove_stops(recipe, run, scored, task)
    write_report(recipe, run)
    if failure:
        raise failure


def _systems(recipe: Recipe, run: Run) -> Iterator[tuple[str, PreTrainedModel]]:
    """The tuned model and its base, both exactly as trained: same quantised weights, same type."""
    device = default_device()
    model = load_tuned(recipe, run.adapter, device)
    yield "tuned", model
    if recipe.tune.method == "full":
        del model
        gc.collect()  # two whole models need not lie in memory together
        yield "base", load_as_trained(recipe, resolve(recipe.model), device)
    else:
        with adapters_off(model):
            yield "base", model


def _answer(
    recipe: Recipe,
    run: Run,
    name: str,
    model: PreTrainedModel,
    scored: ScoredRows,
    task: Task,
    contract: Contract,
) -> None:
    decoding = run_decoding(recipe, run)
    generator = SlotGenerator(model, slots=recipe.evaluate.batch)
    with console.progress(
        f"evaluate {name}", total=len(scored.examples) * decoding.samples, unit="answers"
    ) as bar:
        answer_rows(
            scored.examples, contract, generator, task, decoding, run.predictions / f"{name}.jsonl",
            on_done=lambda done: bar.update(done),
        )  # fmt: skip


def _measuring(model: PreTrainedModel, recipe: Recipe) -> ReferenceEngine:
    """The engine that training measured its losses with. It wants something to train: the last norm is the least."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        body = getattr(model, model.base_model_prefix)
        body.norm.requires_grad_(True)
    return ReferenceEngine(model, recipe)


def _write_floors(run: Run, task: Task, scored: ScoredRows) -> None:
    rows = Rows.open(run.data, "train").sample(FLOOR_ROWS)
    train = [example for example in rows if example.answer is not None]
    run.predictions.mkdir(parents=True, exist_ok=True)
    for name, answers in (
        ("majority", majority(task, train, scored.examples)),
        ("nearest", nearest(train, scored.examples)),
    ):
        lines = "".join(f"{line}\n" for line in as_lines(answers, scored.examples))
        write_atomic(run.predictions / f"{name}.jsonl", lines.encode("utf-8", "surrogatepass"))


def _write_likelihood(run: Run, scored: ScoredRows, gold: list[GoldRow], nll: dict[str, list[float]]) -> None:
    """One line a row, so that the report can be made again without a model."""
    lines = [
        {
            "id": example.id,
            "bytes": row.bytes,
            "tokens": row.tokens,
            "nll": {name: nll[name][i] for name in nll},
        }
        for i, (example, row) in enumerate(zip(scored.examples, gold, strict=True))
    ]
    run.report.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(run.report / LIKELIHOOD_FILE, text.encode())


def _prove_stops(recipe: Recipe, run: Run, scored: ScoredRows, task: Task) -> ProofFailed | None:
    tuned = score_predictions(run.predictions / "tuned.jsonl", scored.examples, task)
    learned = scored.rows.learned_counts
    proof = answers_stop(
        tuned.predictions, [int(learned[i]) for i in scored.numbers], run_decoding(recipe, run).max_tokens
    )
    try:
        run.prove(proof)
    except ProofFailed as failure:
        return failure  # the report shows it first
    return None


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfRoom(
            f"out of accelerator memory while answering: {str(error).splitlines()[0]}",
            fix="lower evaluate.batch or evaluate.decoding.max_tokens; answers so far are kept",
            resumable=True,
        ) from error
