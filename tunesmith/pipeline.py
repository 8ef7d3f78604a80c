"""The stages in order, and what makes each of them stale.

    rows ── prepare ──> data/, contract.json
            train ────> adapter/, metrics.jsonl, checkpoints/
            evaluate ─> predictions/, report/
            export ───> merged/, quantized/, gguf/, their proofs and scores

A stage is a function of recipe and Run. `advance` calls those whose inputs changed, in order.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith import console
from tunesmith.errors import ProofFailed, TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.run import Run, disk_error, sha256_file, write_atomic
from tunesmith.section import Section
from tunesmith.trained_with import fixed, require_same

# ---- the stages; heavy imports live inside these functions


def _prepare(recipe: Recipe, run: Run) -> None:
    from tunesmith.data.prepare import prepare

    prepare(recipe, run)


def _train(recipe: Recipe, run: Run) -> None:
    from tunesmith.evaluate.ready import require_evaluable
    from tunesmith.train.launch import train

    require_evaluable(recipe, run)
    train(recipe, run)


def _evaluate(recipe: Recipe, run: Run, redact: bool | None = None) -> None:
    from tunesmith.evaluate.evaluate import evaluate

    evaluate(recipe, run, redact=redact)


def _export(recipe: Recipe, run: Run) -> None:
    from tunesmith.evaluate.report import write_report
    from tunesmith.export.card.write import withdraw_cards, write_cards
    from tunesmith.export.export import export

    withdraw_cards(run)
    try:
        export(recipe, run)
    except ProofFailed:  # what passed stays, and is told of
        write_report(recipe, run)
        write_cards(recipe, run)
        raise
    write_report(recipe, run)  # again, with export's proofs and the systems that it scored
    write_cards(recipe, run)


def _require_exportable(recipe: Recipe, run: Run) -> None:
    """What export would refuse hours later."""
    from tunesmith.base import resolve
    from tunesmith.contract import Contract
    from tunesmith.export.preflight import require_exportable

    require_exportable(
        recipe, resolve(recipe.model), run.path, contract=Contract.load(run.contract_folder), run=run
    )


@dataclass(frozen=True)
class Stage:
    """A name, what it does, and the hashes of all that it reads."""

    name: str
    run: Callable[[Recipe, Run], None]
    inputs: Callable[[Recipe, Run], dict[str, str]]


def _rows_inputs(recipe: Recipe, run: Run) -> dict[str, str]:
    from tunesmith.base import resolve
    from tunesmith.data.own_code import code_hash, processor_files, task_files
    from tunesmith.data.sources import resolve_sources, source_files
    from tunesmith.tokenizer_files import TOKENIZER_FILES

    inputs = {"model": _hash(recipe.model), "data": _hash(recipe.data), "seed": str(recipe.seed)}
    # whose parser the data checks use
    inputs["task"] = code_hash(task_files(recipe.evaluate.task)) or recipe.evaluate.task
    for name, path in source_files(recipe.data).items():
        inputs[f"{name} rows" if name != "schema" else name] = (
            sha256_file(path) if path.is_file() else "missing"
        )
    base = resolve(recipe.model)
    inputs["base"] = base.fingerprint
    files = [base.tokenizer_folder / name for name in TOKENIZER_FILES] + [Path(recipe.model.template)]
    for path in files:
        if path.is_file():
            inputs[path.name] = sha256_file(path)
    if own := code_hash(processor_files(recipe.data.processor)):
        inputs["processor"] = own
    if any(source.path is None for source in resolve_sources(recipe.data)):
        folder = Path(tunesmith.__file__).parent / "starter"
        inputs["starter rows"] = sha256_file(folder / "reports.py") + sha256_file(folder / "values.py")
    return inputs


def _train_inputs(recipe: Recipe, run: Run) -> dict[str, str]:
    from tunesmith.base import resolve
    from tunesmith.rows import Rows

    settled = json.dumps({key: value for key, value in fixed(recipe).items() if not key.startswith("data.")})
    inputs = {
        "recipe": hashlib.sha256(settled.encode()).hexdigest(),
        "base": resolve(recipe.model).fingerprint,
        "contract": _contract(run),
    }
    for split in ("train", "validation"):
        if Rows.exists(run.data, split):
            inputs[f"{split} ids"] = Rows.open(run.data, split).sha256
    return inputs


def _scores_inputs(recipe: Recipe, run: Run) -> dict[str, str]:
    from tunesmith.data.own_code import code_hash, metric_files, task_files
    from tunesmith.rows import Rows

    scored = "test" if Rows.exists(run.data, "test") else "validation"
    inputs = {
        "evaluate": _hash(recipe.evaluate),
        "adapter": _weights(run.adapter),
        "contract": _contract(run),
    }
    if own := code_hash(task_files(recipe.evaluate.task)):
        inputs["task"] = own
    if own := code_hash(metric_files(recipe.evaluate.metrics)):
        inputs["own metrics"] = own
    for prompt in recipe.evaluate.prompts:
        if prompt.endswith(".txt"):
            inputs[prompt] = sha256_file(Path(prompt)) if Path(prompt).is_file() else "missing"
    if recipe.model.quantize == "none" and recipe.export.quantized:
        inputs["quantised bases"] = ", ".join(sorted(recipe.export.quantized))
    if recipe.evaluate.bertscore_model:
        inputs["bertscore"] = _encoder(Path(recipe.evaluate.bertscore_model))
    if Rows.exists(run.data, scored):
        inputs["scored ids"] = Rows.open(run.data, scored).sha256
    return inputs


def _encoder(folder: Path) -> str:
    from tunesmith.base import Base

    there = (folder / "config.json").is_file()
    return Base(folder.name, folder, None, {}, folder).fingerprint if there else "missing"


def _export_inputs(recipe: Recipe, run: Run) -> dict[str, str]:
    return {"export": _hash(recipe.export)} | _scores_inputs(recipe, run)


STAGES = (
    Stage("prepare", _prepare, _rows_inputs),
    Stage("train", _train, _train_inputs),
    Stage("evaluate", _evaluate, _scores_inputs),
    Stage("export", _export, _export_inputs),
)
NAMES = tuple(stage.name for stage in STAGES)


def advance(recipe: Recipe, run: Run, until: str = NAMES[-1]) -> None:
    """Brings the run up to and including `until`; stages that are current are left alone."""
    for stage in STAGES[: NAMES.index(until) + 1]:
        inputs = stage.inputs(recipe, run)
        if run.is_current(stage.name, inputs):
            console.note(f"{stage.name}: done already")
            continue
        if stage.name == "train" and until == NAMES[-1]:
            _require_exportable(recipe, run)
        _do(stage, recipe, run, inputs)
    run.write_state(phase=f"{until} done")


def redo(recipe: Recipe, run: Run, name: str, redact: bool = False) -> None:
    """One stage of a finished run anew, from what lies in the run folder: no row file is read, nothing is trained.

    `redact`: of evaluate: no report with texts is ever written, also where a proof fails.
    TunesmithError where a stage before it has not finished, or its results are no longer what it was finished on.
    """
    stage = STAGES[NAMES.index(name)]
    for before in STAGES[1 : NAMES.index(name)]:  # not prepare: it reads files that may lie elsewhere now
        if not run.is_current(before.name, before.inputs(recipe, run)):
            raise TunesmithError(
                f"{before.name} has not finished in this run, or what it read has changed since",
                where=str(run.path),
                fix="tunesmith run RECIPE goes on with it",
            )
    inputs = stage.inputs(recipe, run)
    _do(replace(stage, run=partial(_evaluate, redact=True)) if redact else stage, recipe, run, inputs)
    run.write_state(phase=f"{name} done")


def _do(stage: Stage, recipe: Recipe, run: Run, inputs: Mapping[str, str]) -> None:
    """Runs a stage. While it runs, neither it nor a stage after it counts as finished.

    `inputs` are as they were before it began: what changes meanwhile was not what it read.
    """
    console.note(f"{stage.name} …")
    run.unstamp(NAMES[NAMES.index(stage.name) :])
    run.write_state(phase=stage.name)
    try:
        stage.run(recipe, run)
    except OSError as error:
        raise disk_error(error, run.path) or error from None
    run.stamp(stage.name, inputs)


# ---- opening a run for a recipe


def open_run(recipe: Recipe, runs_dir: Path, fork: bool) -> Run:
    """The recipe's run folder; with `fork` the `<name>-2`, `<name>-3` … that this recipe began, else the first free."""
    path = runs_dir / recipe.name
    number = 2
    while fork and path.exists():
        path = runs_dir / f"{recipe.name}-{number}"
        number += 1
        if Run(path).read_json(Run(path).lock_file).get("recipe") == fixed(recipe):
            break  # the same fork, begun earlier: this call goes on with it
    return Run(path)


def claim(recipe: Recipe, run: Run, text: str) -> None:
    """Writes recipe.yaml and lock.json into the (locked) run; RunChanged where what it was trained on has changed.

    Sections that come after training (evaluate, export, publish, targets) may change: their stages run again.
    """
    inputs = _rows_inputs(recipe, run)
    require_same(recipe, run, inputs)
    write_atomic(run.recipe_file, text.encode())
    run.write_json(
        run.lock_file,
        {"recipe": fixed(recipe), "rows": inputs, "recipe_sha256": recipe.hash(), **_environment()},
    )


def _environment() -> dict[str, Any]:
    versions = {}
    for name in ("torch", "transformers", "tokenizers", "safetensors", "bitsandbytes", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {"versions": versions | {"tunesmith": tunesmith.__version__, "python": platform.python_version()}}


def _hash(section: Section) -> str:
    return hashlib.sha256(
        json.dumps(section.model_dump(mode="json", by_alias=True), sort_keys=True).encode()
    ).hexdigest()


def _contract(run: Run) -> str:
    path = run.contract_folder / "contract.json"
    return sha256_file(path) if path.is_file() else "missing"


def _weights(folder: Path) -> str:
    return " ".join(sha256_file(path) for path in sorted(folder.glob("*.safetensors"))) or "missing"
