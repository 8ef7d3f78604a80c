"""Which engine fits, as far as recipe, config.json and the card's age say it: no model, no torch.

`fused_fits` asks the same questions of a loaded model, and some more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.model.families import unlike
from tunesmith.recipe import Recipe

AMPERE, FIRST_FP8 = (8, 0), (8, 9)  # compute capabilities


def against(recipe: Recipe, kind: str, acting: str) -> str | None:
    """What stands against the fused engine for a model of this class and activation; None where nothing does."""
    if recipe.tune.method != "lora":
        return f"tune.method: {recipe.tune.method} trains the base's own weights"
    if not recipe.train.packing:
        return "train.packing: false asks for a padded rectangle"
    return unlike(kind, acting)


def slow(capability: tuple[int, int], half: bool) -> str | None:
    """Why the fused engine would gain nothing on such a card, although it could."""
    if capability < AMPERE:
        return "the card is older than Ampere"
    return None if half else "model.dtype is not a half type"


def no_fp8(capability: tuple[int, int]) -> str | None:
    """Why a card has no fp8 products."""
    if capability >= FIRST_FP8:
        return None
    found, first = (f"{major}.{minor}" for major, minor in (capability, FIRST_FP8))
    return f"the card has compute capability {found}; fp8 begins with {first}"


def engine_on(
    recipe: Recipe, config: Mapping[str, Any], capability: tuple[int, int]
) -> tuple[str, str | None]:
    """("fused" or "reference", why not the fused one) on a card, as `choose_engine` decides with the model at hand."""
    if recipe.train.engine == "reference":
        return "reference", "train.engine: reference"
    kind = str((config.get("architectures") or ["a model of unknown class"])[0])
    why = against(recipe, kind, str(config.get("hidden_act", "")))
    if recipe.train.engine == "auto":
        why = why or slow(capability, recipe.model.dtype != "float32")
    return ("fused", None) if why is None else ("reference", why)
