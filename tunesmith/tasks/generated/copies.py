"""What of an answer stands in the training answers: runs of words, 13-grams, whole answers.

Texts are compared as words (tasks/normalise.py), so case and punctuation hide nothing. Each place of the training
answers is known by a 64-bit hash of the 13 words that begin there; sorted, they take 12 bytes a word, and the words
themselves 4 more: 320 MB for 20,000 answers of 1,000 words (0.9 GB for the minute in which it is made). A run is found
by its 13-grams and followed to both ends.

What many training answers share (headings, standing phrases) is boilerplate: a model has to write it. A run's own
words are those that no boilerplate 13-gram covers. How many own words are too many is read from the training answers
themselves: each against all others, as if it were held out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from tunesmith.tasks.normalise import words
from tunesmith.tasks.protocol import Table

GRAM = 13  # words, as in the contamination checks of GPT-3 (arXiv 2005.14165, appendix C)
MOST_OWN = 50  # own words in one run that always are a copy where answers are long
_KEPT = 64  # places followed of one gram; a run wholly of commoner grams is followed in 64 answers only
_TRIED = 400  # training answers that are held against all others
_EXPECTED = 0.005  # of them may lie over the limit
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Copied(NamedTuple):
    """How much of one text stands in the training answers."""

    words: int
    grams: int
    """13-grams of the text."""
    known: int
    """Those that stand in a training answer."""
    run: int
    """Words of the longest run that stands in one training answer; 0 below 13."""
    own: int
    """The most words of one such run that are no boilerplate."""
    exact: bool
    """The whole text is a training answer, case and punctuation aside."""
    begin: int
    """Where the run with the most own words begins, in words; its length is `length`."""
    length: int


class CopyIndex:
    """The training answers, to look runs of words up in."""

    def __init__(self, golds: Iterable[str]) -> None:
        self._ids: dict[str, int] = {}
        parts: list[NDArray[np.int32]] = []
        self._whole: Counter[bytes] = Counter()
        for gold in golds:
            said = words(gold)
            self._whole[_digest(said)] += 1
            parts.append(np.array([self._ids.setdefault(w, len(self._ids)) for w in said], np.int32))
        lengths = np.array([len(part) for part in parts], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._words = np.concatenate([*parts, np.zeros(0, np.int32)])
        self.size = len(parts)
        places = np.arange(max(len(self._words) - GRAM + 1, 0), dtype=np.int32)
        kept = self._gold_at(places) == self._gold_at(
            places + (GRAM - 1)
        )  # no gram reaches over an answer's end
        hashes = _hashes(self._words)[kept]
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], places[kept][order]
        self._shared = max(
            3, self.size // 100
        )  # training answers that make a gram boilerplate, when more have it
        self._golds_of: dict[int, int] = {}
        self.measure = lru_cache(maxsize=8192)(self._measure)
        middle = int(np.median(lengths)) if self.size else 0
        self.limit, self._whole_counts = self._limits(min(MOST_OWN, max(GRAM, middle // 2)))

    def is_copy(self, found: Copied) -> bool:
        """Whether it is more than boilerplate and chance explain: at most 1 % of answers held out are."""
        return found.own >= self.limit or (found.exact and self._whole_counts)

    def quote(self, text: str, found: Copied) -> str:
        """The run with the most own words, as words."""
        return " ".join(words(text)[found.begin : found.begin + found.length])

    def _limits(self, least: int) -> tuple[int, bool]:
        """Own words from which a run is a copy; whether a whole training answer said again is one."""
        tried = (
            [int(i) for i in np.unique(np.linspace(0, self.size - 1, min(self.size, _TRIED)))]
            if self.size
            else []
        )
        found = sorted(self._found(self._words[slice(*self._starts[i : i + 2])], i).own for i in tried)
        allowed = int(_EXPECTED * len(found))
        highest = found[-1 - allowed] if found else 0
        repeated = sum(times for times in self._whole.values() if times > 1)
        return max(least, highest + 1), repeated <= _EXPECTED * self.size

    def _measure(self, text: str) -> Copied:
        said = words(text)
        found = self._found(np.array([self._ids.get(w, -1) for w in said], np.int32))
        return found._replace(exact=bool(said) and _digest(said) in self._whole)

    def _found(self, said: NDArray[np.int32], without: int = -1) -> Copied:
        """`said`: word numbers, -1 for words that no training answer has. `without`: a training answer to pass over."""
        total = len(said) - GRAM + 1
        if total <= 0:
            return Copied(len(said), 0, 0, 0, 0, False, 0, 0)
        grams = _hashes(said)
        first, last = (np.searchsorted(self._hashes, grams, side) for side in ("left", "right"))
        last = np.where(
            np.convolve(said < 0, np.ones(GRAM, int))[GRAM - 1 : GRAM - 1 + total] > 0, first, last
        )
        common = self._boilerplate(said, first, last, self._shared + (without >= 0))
        run = own = begin = length = 0
        for start, place in self._streaks(first, last):
            gold = int(self._gold_at(np.array(place)))
            if gold == without:
                continue
            a, b = map(int, self._followed(said, start, place, gold))
            mine = b - a - int(common[b] - common[a])
            run = max(run, b - a)
            if (mine, b - a) > (own, length):
                own, begin, length = mine, a, b - a
        return Copied(len(said), total, int((last > first).sum()), run, own, False, begin, length)

    def _boilerplate(
        self, said: NDArray[np.int32], first: NDArray[np.int64], last: NDArray[np.int64], shared: int
    ) -> NDArray[np.int64]:
        """[words + 1]: how many words before each are covered by grams of more than `shared` training answers."""
        edges = np.zeros(len(said) + 1, np.int64)
        for i in np.flatnonzero(last - first > shared):
            if self._holders(int(first[i]), int(last[i])) > shared:
                edges[i] += 1
                edges[i + GRAM] -= 1
        return np.concatenate([[0], np.cumsum(np.cumsum(edges[:-1]) > 0)])

    def _holders(self, first: int, last: int) -> int:
        """Training answers that have this gram."""
        if first not in self._golds_of:
            self._golds_of[first] = len(np.unique(self._gold_at(self._places[first:last])))
        return self._golds_of[first]

    def _streaks(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(word of the text, place in the training answers) where a run of known grams begins."""
        times = np.minimum(last - first, _KEPT)
        starts = np.repeat(np.arange(len(first)), times)
        within = np.arange(len(starts)) - np.repeat(np.cumsum(times) - times, times)
        places = self._places[np.repeat(first, times) + within].astype(np.int64)
        order = np.lexsort((starts, places - starts))
        starts, places = starts[order], places[order]
        new = np.ones(len(starts), bool)
        new[1:] = (np.diff(places - starts) != 0) | (np.diff(starts) != 1)
        return list(zip(starts[new].tolist(), places[new].tolist(), strict=True))

    def _followed(self, said: NDArray[np.int32], start: int, place: int, gold: int) -> tuple[int, int]:
        """The whole run around a known gram: from and to which word of the text."""
        begin, end = self._starts[gold], self._starts[gold + 1]
        back = min(start, place - begin)
        differ = np.flatnonzero(said[start - back : start] != self._words[place - back : place])
        a = start - back + (int(differ[-1]) + 1 if len(differ) else 0)
        ahead = min(len(said) - start, end - place)
        differ = np.flatnonzero(said[start : start + ahead] != self._words[place : place + ahead])
        return a, start + (int(differ[0]) if len(differ) else int(ahead))

    def _gold_at(self, places: NDArray[np.integer]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, places, side="right") - 1


_KNOWN: WeakValueDictionary[bytes, CopyIndex] = WeakValueDictionary()


def index_of(golds: Sequence[str]) -> CopyIndex:
    """The index of these training answers: the one that another task still holds, where there is one."""
    digest = blake2b(digest_size=16)
    for gold in golds:
        digest.update(blake2b(gold.encode("utf-8", "surrogatepass"), digest_size=16).digest())
    found = _KNOWN.get(digest.digest())
    if found is None:
        found = _KNOWN[digest.digest()] = CopyIndex(golds)
    return found


def copies_table(index: CopyIndex, answers: Sequence[str], golds: Sequence[str]) -> Table:
    """What of a system's answers stands in the training answers, beside the gold answers of the same rows."""
    columns = ("", "texts", "longest run, median", "longest run, most", "own words of a run, most",
               f"{GRAM}-grams in training", "copies", "whole training answers")  # fmt: skip
    note = (
        f"Words in a row that stand in one training answer; a run below {GRAM} words counts as none. Own words are "
        "those that no phrase shared by many training answers explains. A copy has "
        f"{index.limit} or more of them: hardly any training answer has so many in common with another one."
    )
    rows = (("answers", *_figures(index, answers)), ("gold answers", *_figures(index, golds)))
    return Table("Copies from training answers", columns, rows, note)


def _figures(index: CopyIndex, texts: Sequence[str]) -> list[float | int | None]:
    found: list[Copied] = [index.measure(text) for text in texts]
    runs = sorted(one.run for one in found)
    grams = sum(one.grams for one in found)
    return [
        len(found),
        runs[len(runs) // 2],
        runs[-1],
        max(one.own for one in found),
        sum(one.known for one in found) / grams if grams else None,
        sum(index.is_copy(one) for one in found),
        sum(one.exact for one in found),
    ]


def _hashes(ids: NDArray[np.int32]) -> NDArray[np.uint64]:
    """A hash of every 13 neighbours, by a polynomial over mixed word numbers."""
    total = max(len(ids) - GRAM + 1, 0)
    made = np.zeros(total, np.uint64)
    with np.errstate(over="ignore"):
        for k in range(GRAM):
            made *= _MULTIPLIER
            made += _mixed(ids[k : k + total])
        made ^= made >> np.uint64(29)
    return made


def _mixed(ids: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Word numbers spread over 64 bits (the finaliser of splitmix64)."""
    one = (ids.astype(np.int64) + 1).astype(np.uint64) * _MULTIPLIER
    one = (one ^ (one >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    one = (one ^ (one >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return one ^ (one >> np.uint64(31))


def _digest(said: list[str]) -> bytes:
    return blake2b(" ".join(said).encode("utf-8", "surrogatepass"), digest_size=12).digest()
