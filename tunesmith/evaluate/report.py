"""report.json, report.md and report.html: a view of what lies in the Run. No model, no torch.

It is written by evaluate, and again whenever export has added a predictions file of another system.
"""

from __future__ import annotations

from typing import Any

from tunesmith.contract import Contract
from tunesmith.evaluate import markdown, page
from tunesmith.evaluate.build import build
from tunesmith.evaluate.examples import mistakes, stop_share, worst
from tunesmith.evaluate.score import Systems, load_systems, told_in, with_likelihood
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run, sha256_file, write_atomic
from tunesmith.view.scored import ScoredRows, run_decoding, run_task, scored_rows
from tunesmith.view.series import load_series, read_lines

LIKELIHOOD_FILE = "likelihood.jsonl"
SYSTEMS_FILE = "systems.json"


def write_report(recipe: Recipe, run: Run, *, redact: bool | None = None) -> dict[str, Any]:
    """Scores every file in predictions/ and writes the three; returns report.json's content.

    `redact`: report.html without any text of rows or answers (the other two never hold any); None: as last time.
    """
    if redact is None:
        redact = bool(run.read_json(run.report / "report.json").get("redacted"))
    scored = scored_rows(recipe, run)
    told = told_in(run.read_json(run.report / SYSTEMS_FILE))
    systems = load_systems(run.predictions, scored.examples, run_task(recipe, run), told)
    systems = with_likelihood(systems, read_lines(run.report / LIKELIHOOD_FILE))
    content = (
        describe(recipe, run, scored, systems)
        | {"redacted": redact}
        | build(systems, seed=recipe.evaluate.decoding.seed)
    )
    run.write_json(run.report / "report.json", content)
    write_atomic(run.report / "report.md", markdown.render(content).encode("utf-8", "replace"))
    quoted = ([], []) if redact else (worst(systems), mistakes(systems))
    html = page.render(content, load_series(run), *quoted)
    write_atomic(run.report / "report.html", html.encode())
    return content


def describe(recipe: Recipe, run: Run, scored: ScoredRows, systems: Systems) -> dict[str, Any]:
    """The part of report.json that says what was scored."""
    contract = Contract.load(run.contract_folder)
    decoding = run_decoding(recipe, run)
    lock, trained_on = run.read_json(run.lock_file), run.inputs_of("train")
    return {
        "run": run.name,
        "recipe_sha256": recipe.hash(),
        "split": scored.split,
        "selected_on_scored_rows": scored.selected,
        "overlap": scored.overlap,
        "method": _method(recipe),
        "base": {
            "name": recipe.model.base,
            "revision": recipe.model.revision,
            "dtype": recipe.model.dtype,
            "quantize": recipe.model.quantize,
            "sha256": trained_on.get("base"),
        },
        "adapter_sha256": " ".join(sha256_file(path) for path in sorted(run.adapter.glob("*.safetensors")))
        or None,
        "contract": {
            "template": contract.template_name,
            "terminator": contract.terminator,
            "sha256": contract.sha256,
        },
        "data": {
            "rows": len(scored.rows),
            "sha256": scored.rows.sha256,
            "train_rows": len(Rows.open(run.data, "train")),
            "train_sha256": Rows.open(run.data, "train").sha256,
        },
        "decoding": {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_tokens,
            "samples": decoding.samples,
            "seed": decoding.seed,
        },
        "answers_stop": {name: stop_share(systems, name) for name in systems.no_floors},
        "proofs": run.proofs(),
        "versions": lock.get("versions", {}),
    }


def _method(recipe: Recipe) -> str:
    tune = recipe.tune
    if tune.method == "full":
        return "full fine-tuning"
    where = "all linears" if tune.target_modules == "all" else ", ".join(tune.target_modules)
    kind = {"nf4": "QLoRA (NF4)", "int8": "LoRA on 8-bit weights", "none": "LoRA"}[recipe.model.quantize]
    inexact = "; trained with fp8 products, which are inexact" if recipe.train.fp8 else ""
    return f"{kind} rank {tune.rank}, alpha {tune.alpha:g}, on {where}{inexact}"
