"""A named check with its figure: what a hand-off has to pass before the next stage starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Proof:
    """`figure` was measured, `limit` is what it had to keep; `detail` says in words what was compared."""

    name: str
    passed: bool
    figure: float | int | str
    limit: float | int | str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """The entry of proofs.json."""
        return asdict(self)

    def line(self) -> str:
        """One line for a terminal."""
        shown = f"{self.figure:.4g}" if isinstance(self.figure, float) else self.figure
        return f"{'proved' if self.passed else 'FAILED'}  {self.name}: {shown} (limit {self.limit})  {self.detail}"
