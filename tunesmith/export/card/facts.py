"""What a card says, gathered from the files of a Run: nothing is measured here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.export.card.licence import Licence, licence_of
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import dump_recipe
from tunesmith.run import Run, sha256_file
from tunesmith.view.scored import run_decoding
from tunesmith.view.series import read_lines

_HUB_ID = 1  # slashes in the id of a model on the hub
# a value or an item of a list that is a path from the root, a home or upwards, quoted or not
_PLACE = re.compile(r"""^(\s*(?:- )*(?:[\w.-]+: )?)['"]?((?:[/~]|\.{1,2}/)[^'"]*)['"]?$""")


@dataclass(frozen=True)
class Facts:
    """Everything that the cards of a run draw on."""

    recipe: Recipe
    run: Run
    base: Base
    licence: Licence
    contract: Contract
    report: Mapping[str, Any]
    """report.json; empty where nothing is scored."""
    rows: Mapping[str, Any]
    """data/report.json."""
    lock: Mapping[str, Any]
    environment: Mapping[str, Any]
    """Where it was trained, as the last checkpoint says."""
    seconds: float | None
    """Of all training steps."""
    peak_gib: float | None
    max_tokens: int

    @classmethod
    def of(cls, recipe: Recipe, run: Run) -> Facts:
        base = resolve(recipe.model)
        timing = read_lines(run.path / "timing.jsonl")
        memory = [float(line["memory_gib"]) for line in timing if line.get("memory_gib") is not None]
        return cls(
            recipe=recipe,
            run=run,
            base=base,
            licence=licence_of(base),
            contract=Contract.load(run.contract_folder),
            report=run.read_json(run.report / "report.json"),
            rows=run.read_json(run.data / "report.json"),
            lock=run.read_json(run.lock_file),
            environment=_environment(run),
            seconds=sum(float(line["seconds"]) for line in timing) if timing else None,
            peak_gib=max(memory, default=None),
            max_tokens=run_decoding(recipe, run).max_tokens,
        )

    @property
    def hub_base(self) -> str:
        """The base's id on the hub; empty for a folder: where it lies here is nobody else's business."""
        is_id = self.base.name.count("/") == _HUB_ID and not Path(self.base.name).is_dir()
        return self.base.name if is_id else ""

    @property
    def base_name(self) -> str:
        """As readers are told it."""
        return self.hub_base or Path(self.base.name).name

    @property
    def recipe_text(self) -> str:
        """The recipe without the folders of this machine."""
        lines = dump_recipe(self.recipe).splitlines()
        return "\n".join(_PLACE.sub(lambda m: f"{m[1]}{Path(m[2]).name}", line) for line in lines)

    @property
    def adapter_sha256(self) -> str:
        """Of the trained weights."""
        files = sorted(self.run.adapter.glob("*.safetensors"))
        return " ".join(sha256_file(path) for path in files)


def _environment(run: Run) -> Mapping[str, Any]:
    states = [run.read_json(path) for path in run.checkpoints.glob("*/state.json")]
    found: Mapping[str, Any] = max(states, key=lambda one: int(one.get("step", 0)), default={})
    environment: Mapping[str, Any] = found.get("environment", {})
    return environment
