"""The tuned model exactly as it was trained: the same quantised weights, the same type, the adapter live on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tunesmith import console
from tunesmith.base import Base, resolve
from tunesmith.model.adapter import load_adapter
from tunesmith.model.load import load_model
from tunesmith.recipe import Recipe


def default_device() -> torch.device:
    """The accelerator where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_as_trained(recipe: Recipe, base: Base, device: torch.device) -> PreTrainedModel:
    """A base with the recipe's quantisation and type."""
    console.note(
        f"loading {base.folder.name} ({recipe.model.dtype}, quantize: {recipe.model.quantize}) on {device}"
    )
    return load_model(base, dtype=recipe.model.dtype, quantize=recipe.model.quantize, device=device)


def load_tuned(recipe: Recipe, adapter: Path, device: torch.device) -> PreTrainedModel:
    """Base with the adapter in `adapter/`; after full fine-tuning the model that lies there."""
    base = resolve(recipe.model)
    if recipe.tune.method == "full":
        return load_as_trained(recipe, replace(base, folder=adapter), device)
    model = load_as_trained(recipe, base, device)
    load_adapter(model, adapter)
    return model
