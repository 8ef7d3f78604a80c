"""Standing phrases: what many answers say alike, whatever is asked. It flatters scores and answers nothing.

A phrase is six words in a row that a fifth of the training answers hold (the data check `boilerplate` counts the same).
Of a gold answer such phrases are left out; of a model's answer these too, and what half of the model's own answers
repeat where this row's gold does not say it. A section counts as empty only where nothing stands in it but what half of
all answers hold: what stands in a fifth may be one of five treatments. A gold answer of standing phrases alone is
scored whole: a choice among few set answers is a task as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import groupby

from tunesmith.tasks.prose.rouge import spans

WORDS = 6
OFTEN = 0.2  # share of answers
HALF = 0.5
LEAST = 4  # answers that hold it, however few there are
_LOOKED_AT = 1000
_SHOWN = 8

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """Stretches of WORDS words that many answers hold."""

    grams: frozenset[Gram] = frozenset()
    shown: tuple[tuple[str, float], ...] = ()
    """The commonest phrases as they are written, with the share of answers that hold them."""

    @classmethod
    def learn(cls, texts: Sequence[str], share: float = OFTEN) -> Standing:
        """Of `share` of these answers, evenly drawn where they are many."""
        texts = texts[:: max(1, len(texts) // _LOOKED_AT)]
        counts: Counter[int] = Counter()  # hashes: a tuple of words takes ten times the room
        for text in texts:
            counts.update({hash(gram) for gram in _grams(_words(text))})
        least = max(LEAST, share * len(texts))
        often = {gram for gram, times in counts.items() if times >= least}
        if not often:
            return cls()
        grams: set[Gram] = set()
        phrases: Counter[str] = Counter()
        for text in texts:
            found = {gram for gram in _grams(_words(text)) if hash(gram) in often}
            grams |= found
            phrases.update(set(_phrases(text, found)))
        common = sorted(phrases.items(), key=lambda item: (-item[1], -len(item[0]), item[0]))
        kept = [(phrase, times / len(texts)) for phrase, times in common if times >= LEAST]
        return cls(frozenset(grams), tuple(kept[:_SHOWN]))


class Read:
    """A text with the words of it that count."""

    def __init__(self, text: str, grams: Set[Gram] = frozenset(), but: Set[Gram] = frozenset()) -> None:
        self.text = text
        self.spans = spans(text)
        self.covered = _covered([text[begin:end].lower() for begin, end in self.spans], grams, but)

    @property
    def words(self) -> int:
        """All of them."""
        return len(self.spans)

    @property
    def standing(self) -> int:
        """Those of standing phrases."""
        return sum(self.covered)

    def says(self, begin: int, end: int) -> bool:
        """Whether a word that counts stands between two characters."""
        return any(
            begin <= place[0] and place[1] <= end and not covered
            for place, covered in zip(self.spans, self.covered, strict=True)
        )

    def own(self) -> str:
        """The text without its standing phrases, and without the signs behind them."""
        if not any(self.covered):
            return self.text
        kept, at = [], 0
        begins = [begin for begin, _ in self.spans] + [len(self.text)]
        for number, covered in enumerate(self.covered):
            if covered:
                kept.append(self.text[at : begins[number]])
                at = begins[number + 1]
        return "".join([*kept, self.text[at:]]).strip()


def grams_of(text: str) -> frozenset[Gram]:
    """All stretches of WORDS words."""
    return frozenset(_grams(_words(text)))


def _words(text: str) -> list[str]:
    return [text[begin:end].lower() for begin, end in spans(text)]


def _grams(words: Sequence[str]) -> set[Gram]:
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def _covered(words: Sequence[str], grams: Set[Gram], but: Set[Gram]) -> list[bool]:
    made = [False] * len(words)
    if grams:
        for i in range(len(words) - WORDS + 1):
            gram = tuple(words[i : i + WORDS])
            if gram in grams and gram not in but:
                made[i : i + WORDS] = [True] * WORDS
    return made


def _phrases(text: str, grams: Set[Gram]) -> list[str]:
    """Longest stretches of a text that are covered."""
    read = Read(text, grams)
    numbered = groupby(range(read.words), key=lambda number: read.covered[number])
    runs = [list(run) for covered, run in numbered if covered]
    return [text[read.spans[run[0]][0] : read.spans[run[-1]][1]] for run in runs]
