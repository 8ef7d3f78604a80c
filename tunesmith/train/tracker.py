"""What a tracker is: a place where a run's curves are kept beside the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

Outcome = Literal["finished", "stopped", "failed"]
CURVES = {
    "loss": "loss/train",
    "validation_loss": "loss/validation",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "tokens_per_second": "tokens_per_second",
}
"""Figure of a logged step → its name in TensorBoard and in every tracker."""


class Tracker(Protocol):
    """A tracked run that is open."""

    id: str
    """Its name in the tracker's own books: kept in the run folder, given back at a resume."""
    last_step: int
    """The last step that has arrived there; 0 for none."""

    def log(self, step: int, figures: Mapping[str, float], at: float) -> None:
        """A step's figures by the names of TensorBoard's curves; `at`: unix seconds."""

    def close(self, outcome: Outcome) -> None:
        """Sends what is left."""
