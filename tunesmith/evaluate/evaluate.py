"""Stage evaluate: several systems answer the same rows; floors beside them; predictions, likelihoods, report, proof."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith import console
from tunesmith.answers import answer_rows, made_by
from tunesmith.base import resolve
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.errors import ModelError, ProofFailed
from tunesmith.evaluate import systems
from tunesmith.evaluate.floors import as_lines, majority, nearest
from tunesmith.evaluate.measured.bertscore import write_bertscore
from tunesmith.evaluate.measured.exposure import Exposures
from tunesmith.evaluate.measured.likelihood import Measured
from tunesmith.evaluate.ready import Ready
from tunesmith.evaluate.report import CANARIES_FILE, LIKELIHOOD_FILE, write_report
from tunesmith.evaluate.stops import answers_stop
from tunesmith.evaluate.systems import System
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapters_off
from tunesmith.model.room import room
from tunesmith.model.tuned import default_device, load_as_trained, load_tuned
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run, write_atomic
from tunesmith.tasks.score import score_predictions
from tunesmith.view.scored import run_decoding

_FIX = "lower evaluate.batch or evaluate.decoding.max_tokens; answers so far are kept"


def evaluate(recipe: Recipe, run: Run, redact: bool | None = None) -> None:
    """Fills `run.predictions` and `run.report`; the proof `answers_stop` fails after the report is written."""
    job = _Job.of(recipe, run)
    floors = _write_floors(job)
    systems.settle(run, [*job.systems, *systems.floors(floors)])
    with room("answering", _FIX):
        _each_model(recipe, run, job.ask)
    _write_likelihood(job)
    write_bertscore(recipe, run, job.ready.scored.examples)
    failure = _prove_stops(job)
    write_report(recipe, run, redact=redact)
    if failure:
        raise failure


@dataclass(frozen=True)
class _Job:
    """What is asked of every model, and what has been measured of them so far."""

    recipe: Recipe
    run: Run
    ready: Ready
    systems: list[System]
    measured: Measured
    exposures: Exposures

    @classmethod
    def of(cls, recipe: Recipe, run: Run) -> _Job:
        """Everything that can be refused is refused here, before a model is loaded."""
        ready = Ready.of(recipe, run)
        if not any(run.adapter.glob("*.safetensors")):
            raise ModelError(
                "there is nothing to evaluate yet",
                where=str(run.adapter),
                fix="train first: tunesmith run RECIPE",
            )
        measured = Measured.of(ready.scored.rows, ready.scored.numbers, ready.contract)
        train = Rows.open(run.data, "train").examples()
        exposures = Exposures.of(train, ready.contract, recipe.evaluate.decoding.seed)
        return cls(recipe, run, ready, systems.answering(recipe), measured, exposures)

    def ask(self, weights: str, model: PreTrainedModel) -> None:
        """All systems that answer with these weights, and how likely the gold answers are to them."""
        for system in self.systems:
            if system.weights == weights:
                self._answer(system, model)
        name = weights if weights in ("tuned", "base") else f"base-{weights}"
        engine = _measuring(model, self.recipe)
        self.measured.measure(name, engine)
        self.exposures.measure(name, engine)

    def _answer(self, system: System, model: PreTrainedModel) -> None:
        decoding = run_decoding(self.recipe, self.run)
        generator = SlotGenerator.of(model, self.recipe)
        ready = self.ready
        guide = None
        if system.constrained:
            from tunesmith.generate.guide import SchemaGuide  # loads a library of its own

            guide = SchemaGuide.of(ready.task, ready.contract, model)
        rows, out = ready.scored.examples, self.run.predictions / f"{system.name}.jsonl"
        before = made_by(out)
        with console.progress(
            f"evaluate {system.name}", total=len(rows) * decoding.samples, unit="answers"
        ) as bar:
            answer_rows(
                rows, ready.contract, generator, ready.task, decoding, out,
                on_done=lambda done: bar.update(done), guide=guide, asked=ready.asked.get(system.prompt),
            )  # fmt: skip
        if system.name == "tuned" and before not in ("", made_by(out)):
            systems.forget_merged(self.run)


def _each_model(recipe: Recipe, run: Run, work: Callable[[str, PreTrainedModel], None]) -> None:
    """`work(weights, model)` for tuned, base, and the base in each quantised form; two whole models never lie in memory
    together, and the tuned one is its own base where adapters can be switched off."""
    device = default_device()
    model = load_tuned(recipe, run.adapter, device)
    work("tuned", model)
    if recipe.tune.method == "lora":
        with adapters_off(model):
            work("base", model)
    del model
    _free()
    base = resolve(recipe.model)
    if recipe.tune.method == "full":
        work("base", load_as_trained(recipe, base, device))
        _free()
    for weights in dict.fromkeys(one.weights for one in systems.answering(recipe)):
        if weights in systems.HELD:
            console.note(
                f"loading {base.folder.name} ({recipe.model.dtype}, quantize: {weights}) on {device}"
            )
            work(weights, load_model(base, dtype=recipe.model.dtype, quantize=weights, device=device))
            _free()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _measuring(model: PreTrainedModel, recipe: Recipe) -> ReferenceEngine:
    """The engine that training measured its losses with. It wants something to train: the last norm is the least."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        body = getattr(model, model.base_model_prefix)
        body.norm.requires_grad_(True)
    return ReferenceEngine(model, recipe)


def _write_floors(job: _Job) -> list[str]:
    """Predictions that need no model; their names."""
    task, train, examples = job.ready.task, job.ready.train, job.ready.scored.examples
    job.run.predictions.mkdir(parents=True, exist_ok=True)
    if not train:
        return []
    made = {"majority": majority(task, train, examples), "nearest": nearest(train, examples)}
    own: Callable[..., dict[str, Sequence[str]]] | None = getattr(task, "floors", None)
    for name, answers in {**made, **(own(train, examples) if own else {})}.items():
        lines = "".join(f"{line}\n" for line in as_lines(answers, examples))
        write_atomic(job.run.predictions / f"{name}.jsonl", lines.encode("utf-8", "backslashreplace"))
        made[name] = list(answers)
    return list(made)


def _write_likelihood(job: _Job) -> None:
    """One line a row, so that the report can be made again without a model; and one a planted secret."""
    _write_lines(
        job.run.report / LIKELIHOOD_FILE,
        job.measured.lines([example.id for example in job.ready.scored.examples]),
    )
    if job.exposures.canaries:
        _write_lines(job.run.report / CANARIES_FILE, job.exposures.lines())
    else:
        (job.run.report / CANARIES_FILE).unlink(missing_ok=True)


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(path, text.encode())


def _prove_stops(job: _Job) -> ProofFailed | None:
    tuned = score_predictions(job.run.predictions / "tuned.jsonl", job.ready.scored.examples, job.ready.task)
    learned = job.ready.scored.rows.learned_counts
    longest = run_decoding(job.recipe, job.run).max_tokens
    try:
        job.run.prove(
            answers_stop(tuned.predictions, [int(learned[i]) for i in job.ready.scored.numbers], longest)
        )
    except ProofFailed as failure:
        return failure  # the report shows it first
    return None
