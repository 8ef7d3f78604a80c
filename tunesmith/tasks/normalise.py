"""When two spellings count as the same: `words` of a text, `items` of a value.

The gold answers of real extraction data are unsteady: in 4,500 cancer reports one list is joined with " and " 1,792
times, ";" 1,569, " + " 656 and "," 629, in the same field. So values are compared as sets of items. What is not split
is as much evidence: separators in brackets qualify their item ("melanoma (cutaneous, metastatic)", "(head and neck)"),
"/" is mostly a unit ("12 mut/Mb"), "1,200" is one number, and "+" or "-" behind a word is its sign ("ER+", "HER2-"),
which has to survive: without it a positive receptor would equal a negative one.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import accumulate
from typing import Any

_SHORT, _KNOWN = (
    80,
    1 << 14,
)  # letters of a text that is remembered, and how many are: values of fields come again
_KEPT = "+-.,%<>=≤≥"
_DASHES = "‐‑‒–—―−"


class _Letters(dict[int, int | str | None]):
    """str.translate table by Unicode category, so that every script keeps its letters and vowel signs."""

    def __missing__(self, point: int) -> int | str | None:
        letter = chr(point)
        kind = unicodedata.category(letter)
        made: int | str | None = point
        if letter in _DASHES:
            made = "-"
        elif kind == "Cf":
            made = None  # zero-width joiners and marks of direction
        elif letter not in _KEPT and kind[0] in "PSZC":
            made = " "
        self[point] = made
        return made


_LETTERS = _Letters()
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POINT = re.compile(r"\.(?!\d)|(?<=[^\W\d])\.|,")  # all but the decimal point
_BARE_SIGN = re.compile(r"(?<![\w+-])(?!-[.\d])[+-]+|(?<=[\w+-])[+-]+(?=\w)")  # -5 keeps its minus


def words(text: str) -> list[str]:
    """Words of a text: NFKC, case folded, without punctuation; signs, %, < and decimal points stay.

    >>> words("ER-positive, HER2-; PSA 1,200.5 ng/mL")
    ['er', 'positive', 'her2-', 'psa', '1200.5', 'ng', 'ml']
    """
    return list(_short_words(text) if len(text) <= _SHORT else _long_words(text))


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold().translate(_LETTERS)
    text = _POINT.sub(" ", _THOUSANDS.sub("", text))
    return _BARE_SIGN.sub(" ", text).split()


@lru_cache(_KNOWN)
def _short_words(text: str) -> tuple[str, ...]:
    return tuple(_words(text))


@lru_cache(4)  # of one row: its texts are asked for several times
def _long_words(text: str) -> tuple[str, ...]:
    return tuple(_words(text))


def normal(text: str) -> str:
    """`words` behind one another; the text itself, case folded, where no word is left."""
    return " ".join(words(text)) or text.strip().casefold()


_SEPARATOR = re.compile(
    r"""\s?;\s?(?:and\s)?
      | \s?(?<!\d),\s?(?:and\s)? | \s?,(?!\d)\s?(?:and\s)?     # a comma, but not 1,200
      | \sand\s
      | \s\+\s | (?<=[^\W\d])\+(?=[^\W\d])                     # a + b, a+b; never ER+ or 7+3
      | \n""",
    re.VERBOSE | re.IGNORECASE,
)


def split_items(text: str) -> list[str]:
    """The parts of a list that somebody wrote as a text; brackets are kept whole.

    >>> split_items("surgery (TAH-BSO, omentectomy) and carboplatin + paclitaxel; ER+")
    ['surgery (TAH-BSO, omentectomy)', 'carboplatin', 'paclitaxel', 'ER+']
    """
    return list(_short_items(text)) if len(text) <= _SHORT else _split_items(text)


@lru_cache(_KNOWN)
def _short_items(text: str) -> tuple[str, ...]:
    return tuple(_split_items(text))


def _split_items(text: str) -> list[str]:
    text = re.sub(r"\s+", lambda space: "\n" if "\n" in space[0] else " ", text)
    parts, begin, depth_at = [], 0, _depths(text)
    for found in _SEPARATOR.finditer(text):
        if depth_at[found.start()] == 0 and found.start() >= begin:
            parts.append(text[begin : found.start()])
            begin = found.end()
    parts.append(text[begin:])
    return [part for part in parts if part.strip()]


def _depths(text: str) -> list[int]:
    """How many brackets stand open at each place; none counts as open that is never closed."""
    if not any(letter in text for letter in "([{"):
        return [0] * (len(text) + 1)
    change, open_at = [0] * (len(text) + 1), list[int]()
    for place, letter in enumerate(text):
        if letter in "([{":
            open_at.append(place)
        elif letter in ")]}" and open_at:
            change[open_at.pop()] += 1
            change[place + 1] -= 1
    return list(accumulate(change))


def is_null(value: Any) -> bool:
    """null, an empty text, an empty list or object. "none" and "not mentioned" are values."""
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def items(value: Any) -> frozenset[str]:
    """A field's value as a set of normalised items: texts are split, lists are flattened; empty for null.

    >>> sorted(items("liver; Bone and brain")) == sorted(items(["brain", "bone", "liver"]))
    True
    """
    if is_null(value):
        return frozenset()
    if isinstance(value, list):
        # an element of a list is one item: who wrote a list has done the splitting
        return frozenset(one for element in value if not is_null(element) for one in [_element(element)])
    if isinstance(value, str):
        return _items_of_short(value) if len(value) <= _SHORT else _items_of(value)
    return frozenset({_element(value)})


def _items_of(text: str) -> frozenset[str]:
    return frozenset(normal(part) for part in split_items(text)) or frozenset({normal(text)})


_items_of_short = lru_cache(_KNOWN)(_items_of)


def _element(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ((normal(str(key)), inner) for key, inner in value.items() if not is_null(inner))
        return " ".join(f"{key}={_element(inner)}" for key, inner in sorted(pairs, key=lambda pair: pair[0]))
    if isinstance(value, list):
        return " ".join(sorted(_element(inner) for inner in value if not is_null(inner)))
    return normal(shown(value))


def shown(value: Any) -> str:
    """A scalar as people write it: true, 5 for 5.0."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def leaves(value: Any) -> list[str]:
    """All scalars in a value, as texts; null gives none."""
    if is_null(value):
        return []
    if isinstance(value, list):
        return [leaf for element in value for leaf in leaves(element)]
    if isinstance(value, dict):
        return [leaf for element in value.values() for leaf in leaves(element)]
    return [shown(value)]
