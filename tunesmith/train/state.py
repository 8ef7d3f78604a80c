"""Where a training run stands between two optimiser steps, beside its tensors: all that a resume needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class State:
    """Everything here goes into a checkpoint's state.json. Floats survive JSON bit by bit."""

    step: int = 0
    """Optimiser steps done."""
    closed: bool = True
    """The validation and the log line that belong to `step` are done; false when a signal cut the validation short."""
    finished: bool = False
    """The last step is done, or patience ran out."""
    tokens: int = 0
    """Tokens seen since step 1."""
    learned_tokens: int = 0
    """Of these, learned."""
    loss_sum: float = 0.0
    """Loss summed over learned tokens since the last log line."""
    loss_tokens: int = 0
    """Learned tokens since the last log line."""
    gradient_norm: float = 0.0
    """Of the last step, before clipping."""
    best_step: int | None = None
    """Step with the lowest validation loss so far."""
    best_loss: float | None = None
    """That loss."""
    without_best: int = 0
    """Validations in a row without a new best."""
    loss_scale: float = 1.0
    """Factor on the loss in float16; 1 otherwise."""
    steps_at_scale: int = 0
    """Steps in a row without an overflow at this factor."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> State:
        """The inverse of `to_json`; other keys are left alone."""
        return cls(**{field.name: saved[field.name] for field in fields(cls)})
