"""report.json, report.md and report.html: a view of what lies in the Run. No model, no torch.

It is written by evaluate, and again whenever export has added a predictions file of another system.
"""

from __future__ import annotations

from typing import Any

from tunesmith.contract import Contract
from tunesmith.evaluate.build import build
from tunesmith.evaluate.lengths import by_length
from tunesmith.evaluate.measured import bertscore_counts
from tunesmith.evaluate.published import published_for, types_asked
from tunesmith.evaluate.score import Systems, load_systems, told_in, with_bertscore, with_likelihood
from tunesmith.evaluate.shown import markdown, page
from tunesmith.evaluate.shown.examples import quote, stop_share
from tunesmith.evaluate.shown.redaction import redacted
from tunesmith.evaluate.systems import exported
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run, sha256_file, write_atomic
from tunesmith.tasks.generated.canaries import exposure_table
from tunesmith.view.scored import ScoredRows, run_decoding, run_task, scored_rows
from tunesmith.view.series import load_series, read_lines

LIKELIHOOD_FILE = "likelihood.jsonl"
CANARIES_FILE = "canaries.jsonl"
SYSTEMS_FILE = "systems.json"


def write_report(recipe: Recipe, run: Run, *, redact: bool | None = None) -> dict[str, Any]:
    """Scores every file in predictions/ and writes the three; returns report.json's content.

    `redact`: all three without any text of rows or answers; None: as last time.
    """
    if redact is None:
        redact = bool(run.read_json(run.report / "report.json").get("redacted"))
    scored = scored_rows(recipe, run)
    told = told_in(exported(run) | run.read_json(run.report / SYSTEMS_FILE))
    systems = load_systems(run.predictions, scored.examples, run_task(recipe, run), told)
    systems = with_likelihood(systems, read_lines(run.report / LIKELIHOOD_FILE))
    near = read_lines(run.report / bertscore_counts.FILE)
    systems = with_bertscore(systems, near)
    content = (
        describe(recipe, run, scored, systems)
        | {"redacted": redact}
        | build(systems, seed=recipe.evaluate.decoding.seed)
        | {"lengths": by_length(systems, recipe.evaluate.decoding.seed)}
        | {"published": _published(systems)}
    )
    exposed = exposure_table(read_lines(run.report / CANARIES_FILE))
    if exposed is not None and "tuned" in systems.scored:
        content["studies"].setdefault("tuned", []).append(exposed._asdict())
    content["meaning"] |= bertscore_counts.bertscore_meaning(near)
    if redact:
        content = redacted(content)
    run.write_json(run.report / "report.json", content)
    write_atomic(run.report / "report.md", markdown.render(content).encode("utf-8", "replace"))
    html = page.render(content, load_series(run), None if redact else quote(systems))
    write_atomic(run.report / "report.html", html.encode())
    return content


def _published(systems: Systems) -> list[dict[str, Any]]:
    asked = types_asked([example.facts for example in systems.examples])
    return published_for(systems.task.name, systems.task.headline, asked)


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
        "leaks": _leaks(run, scored.split),
        "split_rule": _split_rule(recipe, scored.split),
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


def _leaks(run: Run, split: str) -> dict[str, Any]:
    """Rows of the scored split that are the same as, or much like, rows of another, as prepare counted them."""
    found = (run.read_json(run.data / "report.json").get("inspection") or {}).get("leaks") or {}
    kept = ("of", "exact", "near", "group")
    return {
        pair: {name: one[name] for name in kept if name in one}
        for pair, one in found.items()
        if pair.startswith(f"{split} in ")
    }


def _split_rule(recipe: Recipe, split: str) -> str:
    """How the scored rows were set apart from the training rows."""
    share = getattr(recipe.data.split, split)
    if getattr(recipe.data, split) is not None:
        return f"{split} rows from a file of their own"
    group, stratify = recipe.data.split.group, recipe.data.split.stratify
    by = f", whole documents by {group}" if group else ", whole documents"
    return f"{share:.1%} of data.train{by}" + (f", shares of {stratify} kept" if stratify else "")


def _method(recipe: Recipe) -> str:
    tune = recipe.tune
    if tune.method == "full":
        return "full fine-tuning"
    where = "all linears" if tune.target_modules == "all" else ", ".join(tune.target_modules)
    kind = {"nf4": "QLoRA (NF4)", "int8": "LoRA on 8-bit weights", "none": "LoRA"}[recipe.model.quantize]
    inexact = "; trained with fp8 products, which are inexact" if recipe.train.fp8 else ""
    return f"{kind} rank {tune.rank}, alpha {tune.alpha:g}, on {where}{inexact}"
