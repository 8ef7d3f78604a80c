"""Compiles the fused engine's kernels in a thread while the base is being read.

On a machine that has not trained a shape before, Triton compiles each kernel at its first call, one after another, and
CUDA loads its libraries' kernels likewise: seconds in which the card is idle. A model of two layers of the base's
widths, with random weights, takes two steps meanwhile; it is dropped before the real one has been read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from tunesmith import console
from tunesmith.base import Base
from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_fits import why_not, why_slow
from tunesmith.engine.protocol import pack_sequences
from tunesmith.model.families import KINDS
from tunesmith.model.load import noise_model
from tunesmith.model.lora import add_lora
from tunesmith.recipe import Recipe

_VOCABULARY = 8192  # as wide as the widest block of a kernel; whether 16 divides it is kept


@contextmanager
def warm_up(recipe: Recipe, base: Base, device: torch.device) -> Iterator[None]:
    """Within, kernels are compiled, where the fused engine will be taken; at the end they are.

    On the device: two layers and two short steps beside what is loaded, about half a GiB for an 8B base.
    """
    thread = None
    if device.type == "cuda" and wanted(recipe, base):
        model = small_model(recipe, base, device)
        if why_not(recipe, model) is None and why_slow(model) is None:
            thread = threading.Thread(target=_compile, args=(model, recipe, device), name="kernels")
            thread.start()
        del model
    try:
        yield
    finally:
        if thread is not None:
            thread.join()


def wanted(recipe: Recipe, base: Base) -> bool:
    """Whether recipe and config.json leave room for the fused engine."""
    kinds = base.config.get("architectures") or []
    lora = recipe.tune.method == "lora" and recipe.train.engine != "reference"
    return lora and bool(kinds) and kinds[0] in KINDS


def small_model(recipe: Recipe, base: Base, device: torch.device) -> PreTrainedModel:
    """Two layers of noise, with the recipe's adapters beside them."""
    vocabulary = int(base.config["vocab_size"])
    if vocabulary > 2 * _VOCABULARY:
        vocabulary = _VOCABULARY + vocabulary % 16
    changed = {"num_hidden_layers": 2, "vocab_size": vocabulary, "pad_token_id": None}
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    model = noise_model(base, dtype=dtype, quantize=recipe.model.quantize, device=device, **changed)
    targets = recipe.tune.target_modules
    if (
        targets != "all"
    ):  # a target may name a layer that two layers lack; its kernels don't know where it stands
        targets = tuple(target.rpartition(".")[2] for target in targets)
    add_lora(model, recipe.tune.model_copy(update={"target_modules": targets}), recipe.seed)
    return model


def take_steps(engine: FusedEngine) -> None:
    """Forward and backward of two short batches: their tokens and targets are multiples of 16, and not."""
    for length in (16, 17):
        ids, learned = list(range(1, length + 1)), [True] * length
        engine.step(pack_sequences([ids, ids], [learned, learned], [0, 1], step=1), scale=1.0)


def _compile(model: PreTrainedModel, recipe: Recipe, device: torch.device) -> None:
    try:
        with torch.cuda.device(device):
            take_steps(FusedEngine(model, recipe))
            torch.cuda.synchronize(device)
    except Exception as error:  # what is wrong will be met, and judged, when training begins
        console.note(f"kernels were not compiled ahead: {type(error).__name__}: {error}")
