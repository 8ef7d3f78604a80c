"""check: recipe, files, access, rows, Contract and plan, before anything is spent. No GPU, no run folder."""

from __future__ import annotations

import sys
from typing import Any

from tunesmith import console
from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.data.prepare import Prepared, build
from tunesmith.errors import ProofFailed
from tunesmith.recipe import Recipe
from tunesmith.tasks import make_task
from tunesmith.tasks.schema import load_schema
from tunesmith.train.order import Order

_LEARNED, _GIVEN, _END = "\033[1;32m", "\033[2m", "\033[0m"


def check(recipe: Recipe, show: int = 0) -> dict[str, Any]:
    """Prints what a run would do with this recipe; raises what a run would raise before training."""
    base = resolve(recipe.model)
    prepared = build(recipe, base)
    contract = prepared.contract
    console.say(f"recipe    {recipe.name}: sound")
    console.say(f"base      {base.name} in {base.folder} ({_size(base)})")
    console.say(
        f"contract  template {contract.template_name}, answers end with {contract.terminator}, "
        f"{'no BOS' if contract.bos_id is None else 'BOS ' + str(contract.special.get('bos_token'))}"
    )
    _lengths(prepared)
    proofs = prepared.proofs()
    for proof in proofs:
        console.say(proof.line())
    failed = [proof.name for proof in proofs if not proof.passed]
    if failed:
        raise ProofFailed(f"{len(failed)} proofs failed: {', '.join(failed)}")
    _schedule(recipe, prepared)
    _task(recipe, prepared)
    if show:
        _show(contract, prepared, show)
    return {"report": prepared.report()}


def _size(base: Base) -> str:
    return f"{sum(path.stat().st_size for path in base.weight_files) / 1e9:.2f} GB, {base.config.get('model_type')}"


def _lengths(prepared: Prepared) -> None:
    rows = []
    for name, counts in prepared.report()["splits"].items():
        length = counts["length"]
        rows.append(
            [
                name,
                counts["rows"],
                counts["documents"],
                counts["tokens"],
                f"{counts['learned_tokens'] / counts['tokens']:.0%}",
            ]
            + [length[key] for key in ("min", "p50", "p90", "p99", "max")]
        )
    console.table(
        "rows      lengths in tokens",
        ("split", "rows", "documents", "tokens", "learned", "min", "p50", "p90", "p99", "max"),
        rows,
    )


def _schedule(recipe: Recipe, prepared: Prepared) -> None:
    rows = len(prepared.splits["train"])
    train = recipe.train
    order = Order(rows, batch=train.batch, seed=recipe.seed, epochs=train.epochs, max_steps=train.max_steps)
    steps, per_epoch = order.steps, order.steps_per_epoch
    scored = (
        "test" if "test" in prepared.splits else "validation" if "validation" in prepared.splits else None
    )
    console.say(f"training  {steps} steps of {recipe.train.batch} rows ({steps / per_epoch:.2f} epochs)")
    if scored is None:
        console.warn(
            "there are no test and no validation rows: nothing would be scored (data.split sets some aside)"
        )
    else:
        chose = (
            " (the same rows choose the checkpoint: the report will say so)" if scored == "validation" else ""
        )
        console.say(f"scores    on {len(prepared.splits[scored])} {scored} rows{chose}")


def _task(recipe: Recipe, prepared: Prepared) -> None:
    schema = load_schema(recipe.data.json_schema) if recipe.data.json_schema else None
    task = make_task(
        recipe.evaluate.task, schema, [example.answer or "" for example, _ in prepared.splits["train"]]
    )
    console.say(f"task      {task.name}, headline {task.headline}")


def _show(contract: Contract, prepared: Prepared, count: int) -> None:
    """Rows as the model reads them. Learned text is green on a terminal, in ⟦ ⟧ elsewhere."""
    colour = sys.stdout.isatty()
    for example, encoded in prepared.splits["train"][:count]:
        console.say(
            f"\n── {example.id} ({example.source}): {len(encoded.ids)} tokens, {sum(encoded.learned)} learned"
        )
        for text, learned in contract.spans(encoded):
            if colour:
                sys.stdout.write(f"{_LEARNED if learned else _GIVEN}{text}{_END}")
            else:
                sys.stdout.write(f"⟦{text}⟧" if learned else text)
        console.say("")
