"""Counts that each range of rows makes and the whole adds up; what could grow with the rows has a cap."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

from tunesmith.data.inspect.field_values import MOST_FIELDS

MOST_VALUES = (
    20_000  # distinct values of one field; above, the rarest are forgotten and `distinct` is a lower bound
)
LONGEST = 120  # characters of a value that are kept
SEPARATORS = (";", ",", " and ", "+", "/", "|", "\n")


@dataclass(slots=True)
class FieldTally:
    """One field of JSON answers, or the whole of other answers."""

    rows: int = 0
    null: int = 0
    values: int = 0
    """Values that are not null; the counts below are of these."""
    verbatim: int = 0
    normalised: int = 0
    nothing: int = 0
    """Values of which the prompt has no word."""
    words: int = 0
    found: int = 0
    """Words that the prompt has, of `words`."""
    texts: Counter[str] = field(default_factory=Counter)
    separators: Counter[str] = field(default_factory=Counter)
    forgotten: bool = False
    """Whether rare texts were let go of, or the ends of long ones: more may differ than are counted."""

    def take(self, text: str) -> None:
        """Counts a value; a long one is kept by its beginning."""
        if len(text) > LONGEST:
            self.separators.update(separator for separator in SEPARATORS if separator in text)
            text = text[: LONGEST - 1] + "…"
            self.forgotten = True
        self.texts[text] += 1

    def add(self, other: FieldTally) -> None:
        """Takes another range's."""
        for one in fields(self)[:8]:
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        self.texts.update(other.texts)
        self.forgotten |= other.forgotten
        self.separators.update(other.separators)
        if len(self.texts) > MOST_VALUES:
            self.forgotten = True
            self.texts = Counter(dict(self.texts.most_common(MOST_VALUES // 2)))


class Tally:
    """Counts by name, and those of each field. Picklable and small."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.fields: dict[str, FieldTally] = {}

    def count(self, *key: str, times: int = 1) -> None:
        """One more (or `times`) of `key`."""
        self.counts[key] += times

    def field(self, name: str) -> FieldTally | None:
        """The counts of a field; None for one field too many."""
        found = self.fields.get(name)
        if found is None and len(self.fields) < MOST_FIELDS:
            found = self.fields[name] = FieldTally()
        return found

    def close(self) -> None:
        """At the end of a range: separators are counted once for each distinct value."""
        for one in self.fields.values():
            for text, times in one.texts.items():
                if len(text) == LONGEST and text.endswith("…"):
                    continue
                for separator in SEPARATORS:
                    if separator in text:
                        one.separators[separator] += times

    def add(self, other: Tally) -> None:
        """Takes the counts of another range."""
        self.counts.update(other.counts)
        for name, theirs in other.fields.items():
            mine = self.field(name)
            if mine is not None:
                mine.add(theirs)

    def of(self, *prefix: str) -> dict[str, int]:
        """Counts whose key is `prefix` and one more word, largest first."""
        size = len(prefix)
        found = {
            key[size]: n for key, n in self.counts.items() if len(key) == size + 1 and key[:size] == prefix
        }
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
