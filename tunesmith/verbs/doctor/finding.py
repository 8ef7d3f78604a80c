"""What one check of `doctor` found, and how it is printed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "warn", "fail"]
_NAME, _STATE, _FIX = 17, 6, "      fix: "  # columns


@dataclass(frozen=True, slots=True)
class Finding:
    """`found` says what is there; `fix` is the command or recipe key that mends it."""

    name: str
    state: State
    found: str
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry under `checks` in the last line of `doctor --json`."""
        return {"name": self.name, "state": self.state, "found": self.found, "fix": self.fix}

    def lines(self, width: int = 80) -> list[str]:
        """The check for a terminal: name, state, what was found, and below it the fix."""
        head = f"{self.name:<{_NAME}}{self.state:<{_STATE}}"
        lines = textwrap.wrap(
            self.found, width, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False
        )
        if self.fix:
            after = " " * len(_FIX)
            lines += textwrap.wrap(
                self.fix, width, initial_indent=_FIX, subsequent_indent=after, break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip
        return lines


def worst(findings: Sequence[Finding]) -> State:
    """The worst state among them."""
    order: tuple[State, ...] = ("ok", "warn", "fail")
    return max((finding.state for finding in findings), key=order.index, default="ok")
