"""What a run will work on, from its rows and their order alone: for plans and prices before anything runs. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.engine.forecast import Work
from tunesmith.recipe import Recipe
from tunesmith.train.order import Order


def work_of(
    recipe: Recipe,
    lengths: NDArray[np.int64],
    learned: NDArray[np.int64],
    validation: NDArray[np.int64] | None = None,
) -> Work:
    """Steps and validations of the whole run. Tokens and learned tokens of its rows; tokens of its validation rows."""
    train = recipe.train
    order = Order(
        len(lengths), batch=train.batch, seed=recipe.seed, epochs=train.epochs, max_steps=train.max_steps
    )
    steps = order.taken(lengths, learned)
    tokens = int(lengths.mean() * train.batch * order.steps)
    if steps is not None:
        tokens = sum(sum(step.lengths) for step in steps)
    every = order.steps_per_epoch if train.evaluate_every == "epoch" else train.evaluate_every
    there = validation is not None and len(validation) > 0
    return Work(
        lengths=lengths.tolist(),
        steps=steps,
        count=order.steps,
        tokens=tokens,
        validation=validation.tolist() if validation is not None else (),
        validations=-(-order.steps // every) if there else 0,  # the last step has one, too
    )
