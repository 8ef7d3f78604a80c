"""Whether what an answer says stands in its prompt: to the letter, word by word in order, or as single words."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tunesmith.data.inspect.plain_words import plain_words
from tunesmith.data.inspect.row_view import RowView

ANSWER = ""  # the field name of an answer that has no fields
LEAST = 50  # values to know a habit by
_USUAL = 0.75  # a median coverage below: this field is inferred or written freely, nothing can be said of one value
# coverage, and the share of values that may have so little for it to be out of the ordinary
_STEPS = ((0.5, 0.01), (1 / 3, 0.03), (0.0, 0.05))
_LABEL = (
    5,
    0.005,
)  # times, and share of its field's values, that an inferred value is met if it is a label of its own
_MEMORY = 50_000


class Ground(NamedTuple):
    """One value beside its prompt."""

    verbatim: bool
    normalised: bool
    found: int
    """Words of the value that the prompt has, of `words`."""
    words: int

    @property
    def coverage(self) -> float:
        """Share of the value's words that the prompt has."""
        return self.found / self.words if self.words else 1.0


def values_of(row: RowView) -> Sequence[tuple[str, str | None]]:
    """(field, value) pairs to look up: the fields of a JSON answer, the lines of a list ("- …"), else the answer."""
    if row.fields is not None:
        return row.fields
    answer = row.answer
    if not answer or row.parsed is None:
        return ()
    if answer.startswith("- "):
        lines = [line for line in answer.split("\n") if line.strip()]
        if all(line.startswith("- ") for line in lines):
            return [(ANSWER, line[2:]) for line in lines]
    return ((ANSWER, answer),)


class Grounder:
    """Looks values up in prompts; remembers the words of values that come again."""

    def __init__(self) -> None:
        self._memory: dict[str, tuple[list[str], str]] = {}

    def ground(self, text: str, row: RowView, there: frozenset[str]) -> Ground:
        """`text` in what the row's user said; `there`: the words of that."""
        known = self._memory.get(text)
        if known is None:
            words = plain_words(text)
            known = words, f" {' '.join(words)} "
            if len(text) < 200:
                if len(self._memory) >= _MEMORY:
                    self._memory.clear()
                self._memory[text] = known
        words, flat = known
        found = len([1 for word in words if word in there])
        if found < len(words) or not words:  # then it can't stand there as a whole
            return Ground(False, False, found, len(words))
        return Ground(text.strip() in row.asked, flat in row.asked_flat, found, found)


@dataclass(frozen=True)
class GroundingNorms:
    """For each field the coverage at and below which a value is out of the ordinary. Picklable."""

    limits: Mapping[str, float] = field(default_factory=dict)
    labels: frozenset[tuple[str, str]] = frozenset()
    """Values that stand for something the text says in other words, again and again."""

    @classmethod
    def learn(cls, values: Iterable[tuple[str, str, Ground]]) -> GroundingNorms:
        """From (field, value, ground) of training answers."""
        coverages: dict[str, list[float]] = {}
        seen: Counter[tuple[str, str]] = Counter()
        without: Counter[tuple[str, str]] = Counter()
        for name, text, ground in values:
            if ground.words:
                coverages.setdefault(name, []).append(ground.coverage)
                if len(text) < 200:
                    seen[name, text] += 1
                    without[name, text] += ground.coverage < 0.5
        limits = {}
        for name, found in coverages.items():
            found.sort()
            if len(found) < LEAST or found[len(found) // 2] < _USUAL:
                continue
            for step, rare in _STEPS:
                if bisect_right(found, step) <= rare * len(found):
                    limits[name] = step
                    break
        labels = {
            key
            for key, times in without.items()
            if times >= max(_LABEL[0], _LABEL[1] * len(coverages[key[0]])) and 2 * times >= seen[key]
        }
        return cls(limits, frozenset(labels))

    def finding(self, name: str, text: str, ground: Ground) -> str | None:
        """What to look at, where the value has far less in its prompt than values of this field have."""
        limit = self.limits.get(name)
        if limit is None or not ground.words or ground.coverage > limit or (name, text) in self.labels:
            return None
        what = f"{name}: {_short(text)}" if name else _short(text)
        return f"{what} is not in the input ({ground.found} of {ground.words} words are)"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
