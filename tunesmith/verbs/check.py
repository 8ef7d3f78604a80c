"""check: recipe, files, access, rows, Contract and plan, before anything is spent. No GPU, no run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tunesmith import console, notify
from tunesmith.base import Base, resolve
from tunesmith.contract import Contract, Encoded
from tunesmith.data.cache import FOLDER
from tunesmith.data.levels import verdict
from tunesmith.data.prepare import Prepared, build
from tunesmith.data.reject import require_free, set_aside
from tunesmith.data.shown.table import say_report
from tunesmith.engine.cards import card_of
from tunesmith.errors import ProofFailed, TunesmithError
from tunesmith.evaluate import prompts
from tunesmith.recipe import Recipe
from tunesmith.tasks import own_metrics
from tunesmith.tasks.answered import gold_of
from tunesmith.train import trackers
from tunesmith.train.order import Order
from tunesmith.verbs.foretell import foretell
from tunesmith.view import words
from tunesmith.view.scored import task_of

_LEARNED, _GIVEN, _END = "\033[1;32m", "\033[2m", "\033[0m"
_GOLDS = 20_000


def check(
    recipe: Recipe,
    runs_dir: Path,
    show: int = 0,
    reject_to: Path | None = None,
    typed: str = "RECIPE",
    gpu: str | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """Prints what a run would do with this recipe, typed as `typed`; raises what a run would raise.

    Prepared rows are kept in `runs_dir` for the run. With `reject_to` bad rows are set aside there instead. With `gpu`
    the run is foretold for that card, at `price` US dollars an hour.
    """
    card = None if gpu is None else card_of(gpu)
    notify.require(recipe.train.notify)
    trackers.require(recipe)
    prompts.require(recipe)
    own_metrics.require(recipe.evaluate.metrics)
    if reject_to is not None:
        require_free(recipe.data, reject_to)
    base = resolve(recipe.model)
    prepared = build(recipe, base, runs_dir / FOLDER)
    contract = prepared.contract
    console.say(f"recipe    {recipe.name}: sound")
    console.say(f"base      {base.name} in {base.folder} ({_size(base)})")
    bos = "no BOS" if contract.bos_id is None else f"BOS {contract.special.get('bos_token')}"
    console.say_under(
        "contract", f"template {contract.template_name}, answers end with {contract.terminator}, {bos}"
    )
    say_report(prepared.report, max_length=recipe.data.max_length, recipe=None if reject_to else typed)
    page = prepared.folder / "report.html"
    prepared.write_page(recipe, page)
    console.say(f"page      {page}")
    told: dict[str, Any] = {"report": prepared.report, "page": str(page)}
    if reject_to is not None:
        return told | _set_aside(recipe, prepared, reject_to)
    try:
        _judge(recipe, prepared)
        _schedule(recipe, prepared)
        _task(recipe, prepared)
        told |= {"disk": _export(recipe, base, prepared, runs_dir)}
        if card is not None:
            told |= {"forecast": foretell(recipe, base, prepared, card, price)}
    except TunesmithError as error:
        error.result |= told
        raise
    if show:
        _show(contract, prepared, show)
    return told


def _judge(recipe: Recipe, prepared: Prepared) -> None:
    verdict(recipe, prepared.report, prepared.folder / "findings.jsonl", listed=True)
    proofs = prepared.proofs()
    for split, rows in prepared.splits.items():
        rules = [
            proof.name.removesuffix(f"_{split}")
            for proof in proofs
            if proof.name.endswith(f"_{split}") and proof.passed
        ]
        console.say_under("proved", f"{split}, {len(rows):,} rows: {', '.join(rules)}")
    failed = [proof.name for proof in proofs if not proof.passed]
    for proof in proofs:
        if not proof.passed:
            console.say(proof.line())
    if failed:
        raise ProofFailed(f"{len(failed)} proofs failed: {', '.join(failed)}")


def _set_aside(recipe: Recipe, prepared: Prepared, target: Path) -> dict[str, Any]:
    """Rows that can't be used, and those that a check of level error names, into `target`; the others beside it."""
    fatal = {one["name"] for one in prepared.report["inspection"]["checks"] if one["level"] == "error"}
    if recipe.data.overlong != "drop":
        fatal.add("overlong")
    fatal.add("unreadable")
    found = (
        (one["source"], one["check"], one["detail"]) for one in prepared.findings() if one["check"] in fatal
    )
    return {"set_aside": set_aside(recipe.data, found, target)}


def _size(base: Base) -> str:
    return f"{sum(path.stat().st_size for path in base.weight_files) / 1e9:.2f} GB, {base.config.get('model_type')}"


def _schedule(recipe: Recipe, prepared: Prepared) -> None:
    splits = {name: counts["rows"] for name, counts in prepared.report["splits"].items()}
    train = recipe.train
    order = Order(
        splits["train"], batch=train.batch, seed=recipe.seed, epochs=train.epochs, max_steps=train.max_steps
    )
    epochs = order.steps / order.steps_per_epoch
    console.say_under("training", f"{order.steps:,} steps of {train.batch:,} rows ({epochs:.2f} epochs)")
    scored = next((name for name in ("test", "validation") if name in splits), None)
    if scored is None:
        console.warn(
            "there are no test and no validation rows: nothing would be scored (data.split sets some aside)"
        )
        return
    chose = " (the same rows choose the checkpoint: the report will say so)" if scored == "validation" else ""
    console.say_under("scores", f"on {splits[scored]:,} {scored} rows{chose}")


def _task(recipe: Recipe, prepared: Prepared) -> None:
    golds = [example.answer for example in prepared.splits["train"].sample(_GOLDS) if example.answer]
    task = task_of(recipe, golds)
    console.say(f"task      {task.name}, headline {task.headline}")
    scored = next((name for name in ("test", "validation") if name in prepared.splits), None)
    if scored is not None and recipe.evaluate.metrics:
        for example in prepared.splits[scored].sample(_GOLDS):
            gold_of(task, example)  # the user's own metrics are tried on it
        console.say_under("metrics", f"{', '.join(recipe.evaluate.metrics)}: tried on the {scored} rows")
    if recipe.evaluate.constrained:
        from tunesmith.generate.guide import require_schema

        require_schema(task)


def _export(recipe: Recipe, base: Base, prepared: Prepared, runs_dir: Path) -> list[dict[str, Any]]:
    """What a run to its end will lie on disk, each thing; raises what export would raise."""
    from tunesmith.export.preflight import require_exportable  # brings torch

    items = require_exportable(recipe, base, runs_dir / recipe.name, contract=prepared.contract)
    listed = ", ".join(
        f"{one.name} {words.size(one.bytes)}" + (" (passing)" if one.passing else "") for one in items
    )
    console.say_under("disk", f"about {words.size(sum(one.bytes for one in items))} at most: {listed}")
    return [one._asdict() for one in items]


def _show(contract: Contract, prepared: Prepared, count: int) -> None:
    """Rows as the model reads them. Learned text is green on a terminal, in ⟦ ⟧ elsewhere."""
    colour = sys.stdout.isatty()
    rows = prepared.splits["train"]
    for number in range(min(count, len(rows))):
        example = rows.example(number)
        encoded = Encoded(rows.ids(number).tolist(), rows.learned(number).tolist())
        console.say(
            f"\n── {example.id} ({example.source}): {len(encoded.ids)} tokens, {sum(encoded.learned)} learned"
        )
        for text, learned in contract.spans(encoded):
            if colour:
                sys.stdout.write(f"{_LEARNED if learned else _GIVEN}{text}{_END}")
            else:
                sys.stdout.write(f"⟦{text}⟧" if learned else text)
        console.say("")
