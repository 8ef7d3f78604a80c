"""What a run was trained with: the part of a recipe that training rests on, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.errors import RunChanged
from tunesmith.recipe import Recipe
from tunesmith.run import Run


def require_same(recipe: Recipe, run: Run, inputs: Mapping[str, str] | None = None) -> None:
    """RunChanged, with the differences, where a trained run was trained with another recipe (or other `inputs`)."""
    stored = run.read_json(run.lock_file)
    if not stored or not _has_trained(run):
        return
    changes = _differences(stored["recipe"], fixed(recipe))
    if inputs is not None:
        rows = {
            key: value
            for key, value in stored["rows"].items()
            if key not in ("model", "data", "seed", "task")
        }
        changes += [f"{key}: the file has changed" for key, value in rows.items() if inputs.get(key) != value]
    if changes:
        listing = "\n".join(f"  {change}" for change in changes)
        raise RunChanged(
            f"the recipe is not the one that this run was trained with:\n{listing}",
            where=str(run.path),
            fix="--fork starts another run beside it; or undo the change to go on with this one",
        )


def _has_trained(run: Run) -> bool:
    return any(run.checkpoints.glob("*/MANIFEST.json")) or bool(run.inputs_of("train"))


# may change between a stop and its resume: how a step is laid out in memory, and what is kept, not what is computed
_FREE = (
    "train.micro_batch",
    "train.memory",
    "train.recompute",
    "train.parallel",
    "train.keep",
    "train.trackers",
    "train.notify",
    "data.checks",  # levels: they judge rows, and change none
)


def fixed(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that training rests on, as flat keys."""
    flat: dict[str, Any] = {"seed": recipe.seed}
    for name in ("model", "data", "tune", "train"):
        flat |= _flatten(name, getattr(recipe, name).model_dump(mode="json", by_alias=True))
    return {key: value for key, value in flat.items() if not key.startswith(_FREE)}


def _flatten(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(f"{prefix}.{key}", value)
            if isinstance(value, dict) and value
            else {f"{prefix}.{key}": value}
        )
    return flat


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    keys = sorted(set(old) | set(new))
    return [f"{key}: was {old.get(key)}, is {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
