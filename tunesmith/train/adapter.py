"""The folder `adapter/`: what training leaves for the stages after it. Whole or not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.base import Base
from tunesmith.contract import Contract
from tunesmith.engine.protocol import FlatParameters
from tunesmith.model.adapter import load_adapter, save_adapter
from tunesmith.model.lora import adapters
from tunesmith.recipe import Recipe
from tunesmith.run import Run, beside, write_atomic

ABOUT = "training.json"


def write_adapter(
    recipe: Recipe, run: Run, base: Base, model: nn.Module, parameters: FlatParameters, about: dict[str, Any]
) -> None:
    """PEFT's format (full fine-tuning: the whole model as a Hugging Face folder), contract and tokenizer beside it.

    `about` says which checkpoint it is; `is_current` compares it.
    """
    temporary = beside(run.adapter)
    temporary.mkdir()
    try:
        if recipe.tune.method == "lora":
            save_adapter(model, temporary, base.name, recipe.tune, revision=base.revision)
        else:
            _save_model(temporary, base, parameters, getattr(torch, recipe.model.dtype))
        Contract.load(run.contract_folder).save(temporary)
        write_atomic(temporary / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if run.adapter.exists():
        old = beside(run.adapter)
        run.adapter.rename(old)
        shutil.rmtree(old)
    temporary.rename(run.adapter)


def read_adapter(run: Run, model: nn.Module, parameters: FlatParameters) -> None:
    """Puts what `adapter/` holds into the model: fresh adapters beside the same frozen base, or all weights."""
    if (run.adapter / "model.safetensors").exists():
        for name, tensor in load_file(run.adapter / "model.safetensors").items():
            parameters.views[name].copy_(tensor)
        return
    for layer in adapters(model):
        parent, _, leaf = layer.name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base)
    load_adapter(model, run.adapter)


def is_current(run: Run, about: dict[str, Any]) -> bool:
    """Whether `adapter/` holds that very checkpoint."""
    path = run.adapter / ABOUT
    return path.is_file() and json.loads(path.read_text("utf-8")) == about


def clean(run: Run) -> None:
    """Removes what a killed write has left."""
    for left in run.path.glob(".adapter.*.tmp"):
        shutil.rmtree(left)


def _save_model(folder: Path, base: Base, parameters: FlatParameters, dtype: torch.dtype) -> None:
    """All weights under their Hugging Face names, with the base's configuration."""
    tensors = {name: view.to("cpu", dtype).contiguous() for name, view in parameters.views.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)
