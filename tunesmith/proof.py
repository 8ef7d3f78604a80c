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
        figure, limit = (f"{x:.4g}" if isinstance(x, float) else x for x in (self.figure, self.limit))
        return (
            f"{'proved' if self.passed else 'FAILED'}  {self.name}: {figure} (limit {limit})  {self.detail}"
        )
