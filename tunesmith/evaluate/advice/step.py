"""What a rule for next steps looks at, and what it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunesmith.tasks.answered import Answered
from tunesmith.tasks.protocol import Fault

ENOUGH = 3  # cases below which a rule is silent
WORTH = 0.02  # share of the cases that could be, below which it is silent


@dataclass(frozen=True)
class Step:
    """A line of the list."""

    say: str
    count: int
    """Cases it comes from …"""
    of: int
    """… of so many."""
    harm: int
    """4 may hurt somebody unseen … 1 form: as in tasks/protocol.py."""


class Seen(NamedTuple):
    """What rules look at."""

    content: Mapping[str, Any]
    """report.json so far."""
    system: str
    rows: Sequence[Answered]
    faults: Sequence[Sequence[Fault]]
    """Of each row."""
    sums: Mapping[str, float]
    """Counts over all rows."""

    def of_kind(self, *kinds: str) -> list[Fault]:
        """All faults of these kinds."""
        return [fault for row in self.faults for fault in row if fault.kind in kinds]

    def rows_with(self, *kinds: str) -> int:
        """How many rows have one of them."""
        return sum(any(fault.kind in kinds for fault in row) for row in self.faults)


Rule = Callable[[Seen], Step | None]


def worth_saying(say: str, count: int, of: int, harm: int) -> Step | None:
    """The step, or nothing where it comes from few cases."""
    return Step(say, count, of, harm) if count >= ENOUGH and count >= WORTH * of else None


def most(faults: Iterable[Fault]) -> tuple[str, int]:
    """The commonest place and how many are there; empty where faults have none."""
    places = Counter(fault.where for fault in faults if fault.where).most_common(1)
    return places[0] if places else ("", 0)


def mostly_in(faults: Sequence[Fault]) -> str:
    """The same as the middle of a sentence."""
    place, times = most(faults)
    if not place:
        return ""
    return f", all in {place}" if times == len(faults) else f", {times} of them in {place}"


def total(sums: Mapping[str, float], before: str) -> int:
    """Sum of the counts of all fields."""
    return round(sum(value for name, value in sums.items() if name.startswith(before)))
