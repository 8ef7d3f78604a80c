"""Values of fields: what each field usually holds, and which values stand in the wrong one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.inspect.plain_words import plain_words
from tunesmith.tasks.normalise import is_null, shown

MOST_FIELDS = 100  # names that are told apart; keys that are data themselves would have no end
LEAST_VALUES = 20  # below, a field has no habits yet
ALONE, TOGETHER = (
    3.5,
    3.0,
)  # natural log of how much likelier in the other field: one value; each of two exchanged
_KNOWN = 3  # times that a word has to be met in a field before it speaks for it
_FLOOR = 0.2
_AT_HOME = 0.34  # share of a value's known words that may be at home in its field, where the value is not
_MEMORY = 50_000


def flatten(value: Mapping[str, Any], before: str = "") -> list[tuple[str, str | None]]:
    """(field, text) pairs of an answer; null gives (field, None), a list one pair for each element."""
    found: list[tuple[str, str | None]] = []
    for key, inner in value.items():
        name = before + key if before else key
        if isinstance(inner, str):
            found.append((name, inner if inner.strip() else None))
        elif isinstance(inner, dict) and inner:
            found += flatten(inner, f"{name}.")
        elif isinstance(inner, list) and inner:
            for element in inner:
                if isinstance(element, dict) and element:
                    found += flatten(element, f"{name}.")
                else:
                    found.append((name, None if is_null(element) else shown(element)))
        else:
            found.append((name, None if is_null(inner) else shown(inner)))
    return found


_DIGITS = re.compile(r"\d+")
_LETTERS = re.compile(r"[^\W\d]+")


def shape(word: str) -> str:
    """The shape of a word with digits: L858R is `a0a`."""
    return "shape " + _LETTERS.sub("a", _DIGITS.sub("0", word))


@dataclass(frozen=True)
class ValueModels:
    """How many values of each field hold each word, counted on the sample. Picklable."""

    names: tuple[str, ...]
    totals: tuple[int, ...]
    counts: Mapping[str, tuple[int, ...]]
    """Word, or shape of words with digits → values of each field with it."""

    @classmethod
    def learn(cls, rows: Iterable[Sequence[tuple[str, str | None]]]) -> ValueModels:
        """From the fields of training answers."""
        totals: Counter[str] = Counter()
        by_value: dict[str, Counter[str]] = {}
        for row in rows:
            for name, text in row:
                if text is None or (name not in by_value and len(by_value) >= MOST_FIELDS):
                    continue
                totals[name] += 1
                by_value.setdefault(name, Counter())[text] += 1
        names = tuple(name for name, total in totals.items() if total >= LEAST_VALUES)
        counts: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            for text, times in by_value[name].items():
                words = set(plain_words(text))
                words |= {shape(word) for word in words if not word.isalpha()}
                for word in words:
                    counts.setdefault(word, [0] * len(names))[place] += times
        kept = {word: tuple(found) for word, found in counts.items() if sum(found) >= _KNOWN}
        return cls(names, tuple(totals[name] for name in names), kept)


class SwapFinder:
    """Names values that belong to another field. A value speaks only through words that are known of other rows: a
    rare value is no evidence for anything."""

    def __init__(self, models: ValueModels) -> None:
        self._models = models
        self._place = {name: place for place, name in enumerate(models.names)}
        self._memory: dict[tuple[str, str, bool], dict[str, float]] = {}
        self._home = {
            word: max(range(len(counts)), key=lambda field: counts[field] / models.totals[field])
            for word, counts in models.counts.items()
        }

    def find(self, fields: Sequence[tuple[str, str | None]], sampled: bool) -> list[str]:
        """One line for each exchanged pair or misplaced value of a row."""
        if len(self._models.names) < 2:
            return []
        drawn: dict[str, dict[str, float]] = {}
        texts: dict[str, str] = {}
        for name, text in fields:
            if text is not None and name in self._place:
                towards = self._towards(name, text, sampled)
                if towards:
                    drawn[name], texts[name] = towards, text
        if not drawn:
            return []
        found, told = list[str](), set[str]()
        for name, towards in drawn.items():
            for other, margin in towards.items():
                if name in told or other in told:
                    continue
                back = drawn.get(other, {}).get(name, -math.inf)
                if min(margin, back) > 0 and margin + back >= 2 * TOGETHER:
                    told |= {name, other}
                    found.append(
                        f"{name} and {other} look exchanged: {_short(texts[name])} and {_short(texts[other])}"
                    )
        for name, towards in drawn.items():
            other = max(towards, key=towards.__getitem__)
            if name not in told and towards[other] >= ALONE:
                found.append(f"{name} holds {_short(texts[name])}, which is usual in {other}")
        return found

    def _towards(self, name: str, text: str, sampled: bool) -> dict[str, float]:
        """Fields that the value would fit better, with by how much; empty for nearly all values."""
        key = (name, text, sampled)
        known = self._memory.get(key)
        if known is None:
            if len(self._memory) >= _MEMORY:
                self._memory.clear()
            known = self._memory[key] = self._weigh(self._place[name], text, int(sampled))
        return known

    def _weigh(self, place: int, text: str, own: int) -> dict[str, float]:
        totals, names = self._models.totals, self._models.names
        words = dict.fromkeys(plain_words(text))
        if self._stands_well(place, words):
            return {}
        score, spoken, at_home = [0.0] * len(totals), 0, 0
        for word in words:
            rates = self._rates(word, place, own)
            if rates is None and not word.isalpha():
                rates = self._rates(shape(word), place, own)
            if rates is None:
                continue
            spoken += 1
            at_home += rates[place] == max(rates)
            score = [have + math.log(rate) for have, rate in zip(score, rates, strict=True)]
        if not spoken or at_home > _AT_HOME * spoken:
            return {}
        here, size = score[place], math.sqrt(spoken)
        return {
            names[field]: (there - here) / size
            for field, there in enumerate(score)
            if there > here and field != place
        }

    def _stands_well(self, place: int, words: Iterable[str]) -> bool:
        """Whether so many of the words are at home in the field that there is nothing to weigh: nearly always."""
        known = at_home = 0
        for word in words:
            home = self._home.get(word)
            if home is None and not word.isalpha():
                home = self._home.get(shape(word))
            if home is not None:
                known += 1
                at_home += home == place
        return not known or at_home > _AT_HOME * known

    def _rates(self, word: str, place: int, own: int) -> list[float] | None:
        """How usual the word is in each field, the row itself (`own`) left out; None for a word that is too rare."""
        counts = self._models.counts.get(word)
        if counts is None:
            return None
        others = [count - own if field == place else count for field, count in enumerate(counts)]
        if max(others) < _KNOWN:
            return None
        return [
            (max(count, 0) + _FLOOR) / (total + 1)
            for count, total in zip(others, self._models.totals, strict=True)
        ]


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
