"""How large what a recipe asks for will be, from config.json alone: checkpoints, merged folder, quants, GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tunesmith.base import Base
from tunesmith.engine.memory import Shape
from tunesmith.model.load import empty_model, stored_quantized
from tunesmith.model.lora import linears
from tunesmith.recipe import Recipe

# bits a number of Llama-3.1-8B's layers, scales included, as llama.cpp's own quantiser makes them (its README's table);
# the kinds of one width throughout are exact
BITS = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K_M": 5.7, "Q5_K_S": 5.57,
    "Q4_K_M": 4.89, "Q4_K_S": 4.67, "Q3_K_L": 4.3, "Q3_K_M": 4.0, "Q3_K_S": 3.64, "Q2_K": 3.16, "IQ4_XS": 4.46,
    "IQ4_NL": 4.68,
}  # fmt: skip
_OUTER = 6.5625  # Q6_K: embeddings and head in the narrow kinds
_A_TOKEN = 64  # bytes of a GGUF's vocabulary for each token: text, merge, kind
_HELD = {"nf4": 4 + 8 / 64 + 32 / (64 * 256), "int8": 8.0}
_CHECKPOINTS = 2  # beside train.keep: the best, and the one being written


class Numbers(NamedTuple):
    """Of a model."""

    layers: int
    """In the linears of its layers."""
    outer: int
    """In embeddings, head, norms and biases; a tied head counts once."""
    vocabulary: int
    widths: frozenset[int]
    """Lengths of the rows of all matrices."""

    @property
    def all(self) -> int:
        """Together."""
        return self.layers + self.outer


class Item(NamedTuple):
    """One thing on disk. `passing`: it goes again before the stage ends."""

    name: str
    bytes: int
    passing: bool = False


def numbers_of(base: Base) -> Numbers:
    """Counted on the meta device; no weight is read."""
    model, _ = empty_model(base, torch.bfloat16, stored_quantized(base))
    names = set(linears(model))
    inner = sum(p.numel() for name, p in model.named_parameters() if name.removesuffix(".weight") in names)
    whole = sum(p.numel() for p in model.parameters())
    widths = frozenset(p.shape[-1] for p in model.parameters() if p.ndim == 2)
    return Numbers(inner, whole - inner, int(model.config.vocab_size), widths)


def model_bytes(base: Base, kind: str, numbers: Numbers | None = None) -> int:
    """A GGUF file of this kind, or a folder in nf4 or int8."""
    found = numbers or numbers_of(base)
    if kind in _HELD:
        return int(found.layers * _HELD[kind] / 8 + found.outer * 2)
    bits = BITS[kind]
    outer = bits if bits >= BITS["Q8_0"] else _OUTER
    return int((found.layers * bits + found.outer * outer) / 8) + _A_TOKEN * found.vocabulary


def plan(recipe: Recipe, base: Base) -> list[Item]:
    """All that a run of this recipe writes that is large, in the order in which it appears."""
    found = numbers_of(base)
    export = recipe.export
    trained = found.all if recipe.tune.method == "full" else Shape.of(base.config, recipe).trained
    state = 12.0 if recipe.train.optimizer == "adamw" else 6.1
    copies = recipe.train.keep + _CHECKPOINTS
    made = [
        Item(f"checkpoints ({copies} at most)", int(copies * trained * state)),
        Item("adapter", 4 * trained),
    ]
    both = recipe.model.quantize != "none" and stored_quantized(base) == "none"
    files: Sequence[str] = export.gguf
    if export.merged or files or export.quantized or export.adapter_gguf:
        made.append(Item("merged", 2 * found.all, passing=not export.merged))
        made += [Item("merged, the other candidate", 2 * found.all, passing=True)] if both else []
    made += [Item(kind, model_bytes(base, kind, found)) for kind in export.quantized]
    made += [Item(f"GGUF {kind}", model_bytes(base, kind, found)) for kind in dict.fromkeys(files)]
    narrow = any(BITS[kind] < BITS["Q8_0"] for kind in files)
    if narrow and not {"F32", "F16", "BF16"} & {*files}:
        made.append(
            Item("GGUF that others are quantised from", model_bytes(base, "F16", found), passing=True)
        )
    if export.adapter_gguf:
        made.append(Item("GGUF of the adapter", 2 * trained))
        made.append(
            Item("GGUF of the base, to prove the adapter on", model_bytes(base, "F16", found), passing=True)
        )
    return made
