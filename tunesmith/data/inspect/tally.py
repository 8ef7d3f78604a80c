"""Counts that each range of rows makes and the whole adds up; what could grow with the rows has a cap."""

from __future__ import annotations

from collections import Counter

from tunesmith.data.inspect.field_values import MOST_FIELDS

MOST_VALUES = (
    20_000  # distinct values of one field; above, the rarest are forgotten and `distinct` is a lower bound
)
_LONGEST = 120  # characters of a value that are kept
SEPARATORS = (";", ",", " and ", "+", "/", "|", "\n")


class Tally:
    """Counts by name, and the values of each field. Picklable and small."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.values: dict[str, Counter[str]] = {}
        self.forgotten: set[str] = set()

    def count(self, *key: str, times: int = 1) -> None:
        """One more (or `times`) of `key`."""
        self.counts[key] += times

    def value(self, field: str, text: str) -> None:
        """One more value of a field."""
        found = self.values.get(field)
        if found is None:
            if len(self.values) >= MOST_FIELDS:
                return
            found = self.values[field] = Counter()
        found[text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"] += 1

    def close(self) -> None:
        """At the end of a range: separators are counted once for each distinct value."""
        for field, values in self.values.items():
            for text, times in values.items():
                for separator in SEPARATORS:
                    if separator in text:
                        self.counts["separator", field, separator] += times

    def add(self, other: Tally) -> None:
        """Takes the counts of another range."""
        self.counts.update(other.counts)
        for field, values in other.values.items():
            mine = self.values.get(field)
            if mine is None:
                if len(self.values) >= MOST_FIELDS:
                    continue
                mine = self.values[field] = Counter()
            mine.update(values)
            if len(mine) > MOST_VALUES:
                self.forgotten.add(field)
                self.values[field] = Counter(dict(mine.most_common(MOST_VALUES // 2)))

    def of(self, *prefix: str) -> dict[str, int]:
        """Counts whose key is `prefix` and one more word, largest first."""
        size = len(prefix)
        found = {
            key[size]: n for key, n in self.counts.items() if len(key) == size + 1 and key[:size] == prefix
        }
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
