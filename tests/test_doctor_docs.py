"""What docs/small-gpus.md and docs/troubleshooting.md say is what the planner and the recipe say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith.engine.fused_memory import LEVELS, FusedShape
from tunesmith.engine.memory import Budget
from tunesmith.recipe import Recipe
from tunesmith.recipe import Train as TrainSection
from tunesmith.verbs.doctor.needs import base_bytes, shape_8b

GIB = 1 << 30
DOCS = Path(__file__).parent.parent / "docs"
SMALL, TROUBLE = (DOCS / name for name in ("small-gpus.md", "troubleshooting.md"))


def row(gib: str) -> str:
    """The planner's line for a card of so many GiB."""
    shape = shape_8b()
    usable = Budget.of(TrainSection(memory=float(gib)), None).usable or 0.0
    context = float(gib) * 0.92 * GIB - usable
    longest = [f"{shape.fits(usable, recomputed):,} tokens" for recomputed in (0, shape.layers)]
    return " | ".join([gib, *longest, f"{(shape.peak(2048, shape.layers) + context) / GIB:.1f} GiB"])


def fused_row(gib: str) -> list[str]:
    """The fused engine's planner: the longest row without recomputing, and at all."""
    fused, layers = FusedShape(shape_8b(), shape_8b().adapted), shape_8b().layers
    usable = Budget.of(TrainSection(memory=float(gib)), None).usable or 0.0
    longest = [fused.fits(usable, (LEVELS[0],) * layers), fused.fits(usable, (LEVELS[-1],) * layers, True)]
    return [f"{tokens:,} tokens" if tokens else "" for tokens in longest]


def test_the_tables_are_the_planners() -> None:
    fused, _, reference = SMALL.read_text("utf-8").partition("## T4, V100, other models")
    line = re.compile(r"^\| [^|]+ \| ([\d.]+) \| (.*tokens .+) \|$", re.MULTILINE)
    assert len(line.findall(fused)) == len(line.findall(reference)) == 5
    for gib, rest in line.findall(reference):
        assert f"{gib} | {rest}" == row(gib), "docs/small-gpus.md: the planner says otherwise now"
    for gib, rest in line.findall(fused):
        assert [cell.strip() for cell in rest.split("|")][:2] == fused_row(gib), (
            "docs/small-gpus.md: likewise"
        )


def test_single_figures_are_the_planners() -> None:
    text = SMALL.read_text("utf-8")
    shape = shape_8b()
    assert f"The base in NF4 takes {shape.weights / GIB:.1f} GiB of it" in text
    assert f"adapters and optimiser {shape.state / GIB:.1f} GiB" in text
    assert f"(`model.quantize: none`) takes {base_bytes() / GIB:.1f} GiB" in text
    assert f"has to hold about {base_bytes() * 5 / 4 / GIB:.1f} GiB" in text  # as export asks for
    assert "128 KiB a token" in text and 2 * 2 * shape.layers * shape.keys == 128 * 1024


def _is_key(model: Any, path: list[str]) -> bool:
    fields = {(field.alias or name): field for name, field in model.model_fields.items()}
    if path[0] not in fields:
        return False
    inner = fields[path[0]].annotation
    return len(path) == 1 or (hasattr(inner, "model_fields") and _is_key(inner, path[1:]))


@pytest.mark.parametrize("page", [SMALL, TROUBLE], ids=lambda path: path.stem)
def test_every_key_that_is_named_exists(page: Path) -> None:
    sections = "|".join(name for name in Recipe.model_fields if name not in ("name", "seed", "targets"))
    named = set(re.findall(rf"`(?:--set )?((?:{sections})(?:\.[a-z0-9_]+)+)", page.read_text("utf-8")))
    assert len(named) > 8
    assert [key for key in named if not _is_key(Recipe, key.split("."))] == []


def test_recipes_on_the_page_are_recipes() -> None:
    from ruamel.yaml import YAML

    blocks = re.findall(r"```yaml\n(.*?)```", SMALL.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        sections = YAML(typ="safe").load(block)
        sections["data"] |= {"train": "rows.jsonl"}
        assert Recipe.model_validate({"name": "page"} | sections).model.quantize == "nf4"


def test_every_proof_of_the_selftest_is_explained() -> None:
    from test_selftest import PASSED

    text = TROUBLE.read_text("utf-8")
    assert [name for name in PASSED if f"`{name}`" not in text] == []
