"""How prompts end: a cue that nearly all share, the kind of the last character, lengths at which many were cut."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tunesmith.data.inspect.row_view import RowView

LEAST = 20  # prompts to know a habit by
CUE_SHARE = 0.85  # of prompts that end with one of the cues
USUAL_END = 0.05  # an ending that so many prompts have is no accident
USUAL_COLON = 0.01  # of a heading or a question with a colon
USUAL_SPACE = 0.02  # a space or line break at the end
BROKEN = 0.4  # of prompts that end with a word: so many end with one that hardly ends a thought
BROKEN_MOST = 0.25  # prompts that may be cut: where more end with a word, it is their way
_BRANCH = 0.05  # of prompts that a cue of its own has
_KEPT = 0.9  # a cue grows by a word as long as it keeps so many of its prompts
_CUE_WORDS, _CUE_CHARACTERS = 8, 160
_LAST_WORDS = re.compile(r"\S+\s*")
_SENTENCE = frozenset(".!?…।॥。！？؟۔")
_CLOSING = ")]}\"'”’»`*_"
_OPEN = frozenset(",;-–—/&+([{\\“‘«=<")
_SHORTEST, _LONGER = 60, 0.01  # characters of a limit worth the name; share of prompts that may be longer
_FREQUENT_WORDS = 150
MIDDLE = {
    "word": "with a word",
    "colon": "with a colon",
    "open": "with a sign that wants more",
    "digit": "with a number",
}


def end_kind(text: str) -> str:
    """sentence, closed (bracket, quote), colon, open, digit, word, other or empty; `text` has no space at its end."""
    inner = text.rstrip(_CLOSING)
    if not inner:
        return "other" if text else "empty"
    last = inner[-1]
    if last in _SENTENCE:
        return "sentence"
    if len(inner) < len(text):
        return "closed"
    if last == ":":
        return "colon"
    if last in _OPEN:
        return "open"
    if last.isdigit():
        return "digit"
    return "word" if last.isalpha() or unicodedata.category(last)[0] == "M" else "other"


@dataclass(frozen=True)
class PromptNorms:
    """What prompts have in common. Picklable."""

    cues: tuple[str, ...] = ()
    """Longest first; empty where prompts share no ending."""
    usual: frozenset[str] = frozenset()
    """Kinds of ending that are no accident; empty where nothing can be said."""
    hanging: frozenset[str] = frozenset()
    """Frequent words that prompts never end with."""
    spikes: frozenset[int] = frozenset()
    """Lengths in characters that far more prompts have than their neighbours."""
    spaced: bool = True
    """Whether prompts end with a space now and then."""
    forms: frozenset[str] = frozenset()
    """First words of prompts that mostly end in the middle, as a form without a question mark does."""

    @classmethod
    def learn(cls, rows: Sequence[RowView]) -> PromptNorms:
        """From training rows with a prompt."""
        rows = [row for row in rows if row.ending]
        if len(rows) < LEAST:
            return cls()
        cues = _cues([row.ending for row in rows])
        bodies = [_without(row.ending, cues) for row in rows]
        each = [end_kind(body) for body in bodies]
        kinds = Counter(each)
        step = max(1, len(rows) // 2000)
        counts, frequent = _frequent(rows[::step])
        usual = frozenset(
            kind
            for kind, times in kinds.items()
            if times >= (USUAL_COLON if kind == "colon" else USUAL_END) * len(rows)
        )
        if (
            kinds["word"] <= BROKEN_MOST * len(rows)
            and _broken(counts, frequent, bodies[::step], each[::step]) >= BROKEN
        ):
            usual -= {"word"}
        kinds_of_length = zip(
            *(_lengths(row, body) for row, body in zip(rows, bodies, strict=True)), strict=True
        )
        endings = [row.ending for row in rows]
        spikes = frozenset(length for lengths in kinds_of_length for length in _spikes(lengths, endings))
        spaced = sum(row.length > len(row.ending) for row in rows) >= USUAL_SPACE * len(rows)
        return cls(cues, usual, _hanging(frequent, bodies), spikes, spaced, _forms(bodies, each))

    def cue(self, row: RowView) -> str | None:
        """The cue that the prompt ends with."""
        ending = row.ending
        return next((cue for cue in self.cues if ending.endswith(cue)), None)

    def missing_cue(self, row: RowView) -> str | None:
        """What to look at, where the cue of the others is missing."""
        if not self.cues or not row.ending or row.ending.endswith(self.cues):
            return None
        return f"ends {_tail(row.ending)}; the others end {' or '.join(_tail(cue) for cue in self.cues[:3])}"

    def cut(self, row: RowView, cue: str | None) -> str | None:
        """What to look at, where the prompt seems to be cut."""
        ending = row.ending
        if not ending:
            return None
        body = _without(ending, (cue,)) if cue else ending
        if self.spikes:
            for length in _lengths(row, body):
                if length in self.spikes:
                    return f"exactly {length} characters, as conspicuously many prompts have; ends {_tail(ending)}"
        if not self.usual:
            return None
        if not self.spaced and row.length > len(ending):
            return f"ends with a space, the others don't: {_tail(ending)}"
        kind = end_kind(body)
        if kind not in MIDDLE:
            return None
        if kind not in self.usual and _first_words(body) not in self.forms:
            return f"ends {MIDDLE[kind]}, the others don't: {_tail(body)}"
        if kind == "word" and self.hanging and _last_word(body) in self.hanging:
            return f"ends with a word that never ends a prompt: {_tail(body)}"
        return None


def _cues(endings: Sequence[str]) -> tuple[str, ...]:
    """Suffixes of whole words that together end at least CUE_SHARE of the prompts."""
    suffixes: list[list[str]] = []
    counts: Counter[str] = Counter()
    children: dict[str, set[str]] = {}
    for ending in endings:
        tail = ending[-_CUE_CHARACTERS:]
        starts = [word.start() for word in _LAST_WORDS.finditer(tail)][-_CUE_WORDS:]
        if starts and len(ending) > len(tail) and len(starts) < _CUE_WORDS:
            starts = starts[1:]  # its first word may be half of one
        mine = [tail[start:] for start in reversed(starts)]
        suffixes.append(mine)
        counts.update(mine)
    least = max(5.0, _BRANCH * len(endings))
    for mine in suffixes:
        for shorter, longer in pairwise(mine):
            if counts[longer] >= least:
                children.setdefault(shorter, set()).add(longer)
    roots = {mine[0] for mine in suffixes if mine and counts[mine[0]] >= least}
    cues = {cue for root in roots for cue in _grown(root, counts, children)}
    cues = {cue for cue in cues if sum(letter.isalpha() for letter in cue) >= 3}
    if sum(counts[cue] for cue in cues) < CUE_SHARE * len(endings):
        return ()
    return tuple(sorted(cues, key=lambda cue: (-len(cue), cue)))


def _grown(cue: str, counts: Counter[str], children: dict[str, set[str]]) -> list[str]:
    longer = children.get(cue, set())
    if sum(counts[one] for one in longer) < _KEPT * counts[cue]:
        return [cue]
    return [grown for one in sorted(longer) for grown in _grown(one, counts, children)]


def _without(ending: str, cues: tuple[str, ...]) -> str:
    """The text before a cue that stands on a line of its own; where it ends a sentence, the whole."""
    cue = next((cue for cue in cues if ending.endswith(cue)), "")
    before = ending[: len(ending) - len(cue)]
    return before.rstrip() if cue and before.endswith("\n") else ending


def _lengths(row: RowView, body: str) -> tuple[int, ...]:
    """Lengths that a limit in characters may have been put on: whole, without the instruction, without the cue."""
    whole, before = row.length, row.context
    return whole, whole - before, len(body), len(body) - before


def _spikes(lengths: Sequence[int], texts: Sequence[str]) -> set[int]:
    """Lengths that conspicuously many prompts have: some, where hardly any is longer (the limit); else very many."""
    alike: dict[int, set[int]] = {}
    for length, text in zip(lengths, texts, strict=True):
        alike.setdefault(length, set()).add(
            hash(text)
        )  # rows with the same prompt have no spike of their own
    counts = {length: len(found) for length, found in alike.items()}
    found, longer = set(), 0
    for length in sorted(counts, reverse=True):
        beside = sum(counts.get(length + step, 0) for step in range(-10, 11) if step) / 20
        at_the_end = longer <= _LONGER * len(lengths)
        if length >= _SHORTEST and counts[length] >= (5 + 4 * beside if at_the_end else 15 + 8 * beside):
            found.add(length)
        longer += counts[length]
    return found


def _frequent(rows: Sequence[RowView]) -> tuple[Counter[str], set[str]]:
    """How many prompts have a word; the words that most of them have."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.asked_set)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_FREQUENT_WORDS]
    return counts, {word for word, times in ranked if times >= 0.1 * len(rows)}


def _broken(counts: Counter[str], frequent: set[str], bodies: Sequence[str], kinds: Sequence[str]) -> float:
    """Of prompts that end with a word: the share that end with a small word, or one that no other prompt has.

    A text that is cut ends anywhere: in the middle of a word, or with "the" as often as texts say it.
    """
    ends = [_last_word(body) for body, kind in zip(bodies, kinds, strict=True) if kind == "word"]
    broken = [word for word in ends if word in frequent or counts[word] <= 1]
    return len(broken) / len(ends) if len(ends) >= 5 else 0.0


def _hanging(frequent: set[str], bodies: Sequence[str]) -> frozenset[str]:
    if len(bodies) < 10 * LEAST:
        return frozenset()
    ends = Counter(_last_word(body) for body in bodies if end_kind(body) == "word")
    return frozenset(word for word in frequent if ends[word] < 0.005 * len(bodies))


def _forms(bodies: Sequence[str], kinds: Sequence[str]) -> frozenset[str]:
    total, middle = Counter[str](), Counter[str]()
    for body, kind in zip(bodies, kinds, strict=True):
        start = _first_words(body)
        total[start] += 1
        middle[start] += kind in MIDDLE
    return frozenset(start for start, times in middle.items() if times >= 5 and 2 * times >= total[start])


def _first_words(text: str) -> str:
    return " ".join(text[:80].split()[:3])


def _last_word(text: str) -> str:
    return text[-60:].split()[-1].lower() if text else ""


def _tail(text: str) -> str:
    return repr(text if len(text) <= 40 else "…" + text[-39:])
