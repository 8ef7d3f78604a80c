"""predict: answers for new rows, by the Contract that the model was trained with; resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith import console
from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.data.formats.examples import Manner, read_file
from tunesmith.data.processors.ready import PROCESSORS
from tunesmith.errors import AccessError, ModelError
from tunesmith.recipe import Model
from tunesmith.recipe_file import load_recipe
from tunesmith.run import Run, find_run, is_run, require_writable
from tunesmith.tasks import Task, make_task
from tunesmith.trained_with import require_same

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST = 512  # tokens of an answer, for a model that no run tells more about


@dataclass(frozen=True)
class Served:
    """A model that can answer."""

    model: PreTrainedModel
    contract: Contract
    task: Task
    max_tokens: int


def predict(
    model: str,
    rows: Path,
    out: Path,
    *,
    runs_dir: Path,
    batch: int | Literal["auto"] = "auto",
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Writes a line per row of `rows` to `out`: id, prompt, answer, what the task reads in it, and its problems."""
    require_writable(out)
    if out.exists() and rows.exists() and out.samefile(rows):
        raise AccessError(
            "--out is the file of the rows: they would be lost", where=str(out), fix="name another"
        )
    run = _run_of(model, runs_dir)
    contract = Contract.load(run.contract_folder) if run else None
    manner = Manner(labelled=False) if contract is None else _manner(contract, own=run is not None)
    examples = read_file(rows, manner)  # bad rows are told before a model is loaded
    served = _load(model, run)
    from tunesmith.answers import answer_rows
    from tunesmith.generate.protocol import Decoding
    from tunesmith.generate.slots import SlotGenerator

    decoding = Decoding(max_tokens=max_tokens or served.max_tokens)
    generator = SlotGenerator(served.model, slots=batch)
    with console.progress("predict", total=len(examples), unit="answers") as bar:
        answer_rows(
            examples, served.contract, generator, served.task, decoding, out, on_done=lambda n: bar.update(n)
        )
    console.say(f"{len(examples)} answers: {out}")
    return {"out": str(out), "rows": len(examples)}


def _run_of(name: str, runs_dir: Path) -> Run | None:
    """The run that `name` is, or that the merged model `name` lies in; None for any other model."""
    for folder in (Path(name), Path(name).parent) if Path(name).is_dir() else ():
        if (folder / "recipe.yaml").is_file() and (folder / "stages.json").is_file():
            return Run(folder)
    if name == "latest" or is_run(runs_dir / name):
        return find_run(name, runs_dir)
    return None


def _manner(contract: Contract, own: bool) -> Manner:
    """Rows are read as the training rows were. Code named in a folder that may come from elsewhere is not run."""
    reading = contract.reading
    processor = reading.get("processor")
    if processor is not None and not own and processor not in PROCESSORS:
        raise ModelError(
            f"this model's rows were made by {processor}, whose code would run here",
            where="contract.json: reading.processor",
            fix="predict with the run itself, or give rows with prompts and remove that key",
        )
    return Manner(
        reading.get("format", "auto"),
        contract.system,
        contract.instruction_role,
        labelled=False,
        columns=reading.get("columns"),
        processor=processor,
    )


def _load(name: str, run: Run | None) -> Served:
    from tunesmith.model.tuned import default_device, load_tuned

    if run is None:
        return _load_folder(name, None)
    from tunesmith.view.scored import run_decoding, run_task

    recipe = load_recipe(run.recipe_file)
    require_same(recipe, run)
    task, longest = run_task(recipe, run), run_decoding(recipe, run).max_tokens
    if Path(name).resolve() != run.path.resolve() and (Path(name) / "config.json").is_file():
        served = _load_folder(name, task)  # the merged model
        return Served(served.model, served.contract, task, longest)
    if not any(run.adapter.glob("*.safetensors")):
        raise ModelError(
            "this run has no adapter yet", where=str(run.path), fix="tunesmith run RECIPE trains one"
        )
    model = load_tuned(recipe, run.adapter, default_device())
    return Served(model, Contract.load(run.contract_folder), task, longest)


def _load_folder(name: str, task: Task | None) -> Served:
    from tunesmith.model.load import load_model
    from tunesmith.model.tuned import default_device

    base = resolve(Model(base=name))
    stored = base.config.get("dtype") or base.config.get("torch_dtype") or "bfloat16"
    contract = (
        Contract.load(base.folder)
        if (base.folder / "contract.json").is_file()
        else Contract.make(base.tokenizer_folder)
    )
    model = load_model(base, dtype=stored, device=default_device())
    return Served(model, contract, task or make_task("text"), LONGEST)
