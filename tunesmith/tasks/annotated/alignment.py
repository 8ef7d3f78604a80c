"""Where listed words stand in a text: whole words, whatever their case, in every script.

A text becomes tokens (a run of letters, digits and their marks, or one sign), a form the same; so "lithium" stands in
"lithium-induced" and not in "lithiums", and one pass over the tokens finds thousands of forms. Where forms overlap the
leftmost longest one is taken, as an annotator does: "lithium" is not counted within "lithium carbonate".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

_TOKEN = re.compile(r"\w+|[^\w\s]")
_GLUE = ("Mn", "Mc", "Me", "Cf")  # vowel signs, accents, joiners: re's \w knows none of them


class Token(NamedTuple):
    """A token of a text; `key` is equal for two spellings that count as the same."""

    start: int
    end: int
    key: str


class Found(NamedTuple):
    """An occurrence of a form. `end` is the character behind it."""

    start: int
    end: int
    key: str


@lru_cache(maxsize=4096)
def tokens(text: str) -> tuple[Token, ...]:
    """The tokens of a text in order."""
    places = [found.span() for found in _TOKEN.finditer(text)]
    if not text.isascii():
        places = _glued(text, places)
    return tuple(Token(start, end, _key(text[start:end])) for start, end in places)


def form_key(form: str) -> str:
    """A form as it is compared: NFKC, case folded, tokens one space apart, a full stop at its end dropped.

    >>> form_key("  Lithium-Carbonate. ") == form_key("lithium - carbonate")
    True
    """
    return " ".join(token.key for token in tokens(form.strip().rstrip(".,;").strip()))


class Forms:
    """Forms to look for; made once, used on any number of texts."""

    def __init__(self, keys: Iterable[str]) -> None:
        """`keys`: as `form_key` writes them."""
        self._by_first: dict[str, list[tuple[str, ...]]] = {}
        for parts in sorted({tuple(key.split(" ")) for key in keys if key}, key=len, reverse=True):
            self._by_first.setdefault(parts[0], []).append(parts)

    def find(self, text: str) -> list[Found]:
        """Occurrences that don't overlap, in order; of several that begin at one token the longest."""
        there = tokens(text)
        keys = tuple(token.key for token in there)
        found, place = list[Found](), 0
        while place < len(keys):
            size = self._longest(keys, place)
            if size:
                last = place + size
                found.append(Found(there[place].start, there[last - 1].end, " ".join(keys[place:last])))
            place += size or 1
        return found

    def find_each(self, text: str) -> dict[str, list[tuple[int, int]]]:
        """Every occurrence of each form for itself, also within another form; forms that stand nowhere are left out."""
        there = tokens(text)
        keys = tuple(token.key for token in there)
        found: dict[str, list[tuple[int, int]]] = {}
        for place, key in enumerate(keys):
            for parts in self._by_first.get(key, ()):
                last = place + len(parts)
                if keys[place:last] == parts:
                    found.setdefault(" ".join(parts), []).append((there[place].start, there[last - 1].end))
        return found

    def _longest(self, keys: tuple[str, ...], place: int) -> int:
        """Tokens of the longest form that stands at `place`; 0 where none does."""
        for parts in self._by_first.get(keys[place], ()):
            if keys[place : place + len(parts)] == parts:
                return len(parts)
        return 0


def _key(token: str) -> str:
    return unicodedata.normalize("NFKC", token).casefold()


def _glued(text: str, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Marks and joiners belong to the word that they stand in."""
    made: list[tuple[int, int]] = []
    open_end = -1  # end of a word that a mark left open for more letters
    for start, end in places:
        mark = unicodedata.category(text[start]) in _GLUE
        touches = bool(made) and made[-1][1] == start and (_is_word(text[start - 1]) or open_end == start)
        if touches and (mark or open_end == start) and (mark or _is_word(text[start])):
            made[-1] = (made[-1][0], end)
        else:
            made.append((start, end))
        open_end = end if mark else -1
    return made


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_" or unicodedata.category(letter) in _GLUE
