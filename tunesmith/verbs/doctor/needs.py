"""What a QLoRA run of an 8B model needs, by the planner's arithmetic: the yardstick of doctor's card and disk checks.

The shape is Llama 3.1 8B's; the settings are a recipe's defaults (rank 16 on all linears, 16 rows a step).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from tunesmith.engine.memory import Budget, Shape
from tunesmith.recipe import Data, Model, Recipe

LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
_CHECKPOINTS = 4  # train.keep: 2, the best, and the one being written
_CHECKPOINT_BYTES = 12  # a trained number: itself and AdamW's two, in fp32
_MERGES = 2  # into the NF4 image and into the original base: the better one is kept


def recipe_8b(dtype: str = "bfloat16") -> Recipe:
    """The recipe that is meant."""
    return Recipe(
        name="qlora-8b",
        model=Model.model_validate({"base": "8B", "quantize": "nf4", "dtype": dtype}),
        data=Data(train="rows.jsonl"),
    )


@cache
def shape_8b(dtype: str = "bfloat16") -> Shape:
    """Its memory, for the planner."""
    return Shape.of(LLAMA_8B, recipe_8b(dtype))


def longest_row(card_bytes: int, dtype: str) -> int:
    """Tokens of the longest row that a card of this size trains, every layer recomputing; 0: the model does not fit."""
    usable = Budget.of(recipe_8b(dtype).train, card_bytes).usable or 0.0
    shape = shape_8b(dtype)
    return shape.fits(usable, shape.layers)


def base_bytes() -> int:
    """The base in the hub's cache, in 16 bit."""
    return int(replace(shape_8b(), quantize="none").weights)


def run_bytes() -> int:
    """A run folder at its largest: checkpoints, and both merged candidates of a QLoRA export."""
    return _CHECKPOINTS * _CHECKPOINT_BYTES * shape_8b().trained + _MERGES * base_bytes()
