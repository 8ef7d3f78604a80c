"""Texts as sets of word 3-grams, and how much two texts share.

A word is a run of letters, digits, marks and symbols outside ASCII, lower-cased; spaces and punctuation part words.
Scripts that are written without spaces (Thai, Lao, Burmese, Khmer, Chinese, Japanese) have no words to find: there
each character counts as a word, so their shingles are character 3-grams. Kannada, Hindi, Korean and the like have
spaces and are cut at them. A text of one or two words is one shingle; a text without words has none.

The classes of characters are written down here and not taken from Python's Unicode tables: they are the same on every
machine and in every version.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS = 3
_ASCII_WORD = b"0123456789abcdefghijklmnopqrstuvwxyz"
# outside ASCII: what parts words …
_BETWEEN = [
    (0x80, 0xA9), (0xAB, 0xB4), (0xB6, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7), (0x0589, 0x058A),
    (0x05BE, 0x05BE), (0x060C, 0x060C), (0x061B, 0x061F), (0x066A, 0x066D), (0x06D4, 0x06D4), (0x0964, 0x0965),
    (0x1680, 0x1680), (0x2000, 0x200B), (0x200E, 0x206F), (0x3000, 0x3004), (0x3008, 0x3020), (0x3030, 0x3030),
    (0x30FB, 0x30FB), (0xFE10, 0xFE19), (0xFE30, 0xFE6F), (0xFEFF, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF65),
]  # fmt: skip
# … and where each character is a word
_ALONE = [
    (0x0E01, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x302F),
    (0x3031, 0x30FA), (0x30FC, 0x312F), (0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
]  # fmt: skip

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd: has an inverse modulo 2^64
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)
_STRETCH = 1 << 16  # characters hashed at a time
_TWO = np.uint64(0xBF58476D1CE4E5B9)
_THREE = np.uint64(0x94D049BB133111EB)


def shingles(text: str) -> frozenset[str]:
    """The text's shingles as they read, words joined by a space."""
    kinds = _kinds()
    words: list[str] = []
    open_word = False
    for character in text.lower():
        kind = kinds[ord(character)]
        if kind == 1 and open_word:
            words[-1] += character
        elif kind:
            words.append(character)
        open_word = kind == 1
    last = max(len(words) - WORDS, 0)
    return frozenset(" ".join(words[i : i + WORDS]) for i in range(last + 1) if words)


def fold(text: str) -> str:
    """The text in small letters with single spaces; without any where it has no words. Its shingles are the same."""
    parts = text.lower().split()
    kinds = _kinds()
    worded = any(kinds[ord(character)] for part in parts for character in part)
    return (" " if worded else "").join(parts)


def jaccard(a: str, b: str) -> float:
    """Shingles that both texts have over those that either has; 0 where a text has none."""
    left, right = shingles(a), shingles(b)
    both = len(left & right)
    return both / (len(left) + len(right) - both) if both else 0.0


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele et al. 2014): a bijection in which each bit hangs on all others."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= _TWO
    mixed ^= mixed >> np.uint64(27)
    mixed *= _THREE
    mixed ^= mixed >> np.uint64(31)
    return mixed


def shingle_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """64-bit hashes of all texts' shingles behind one another, and where each text's begin [len(texts) + 1].

    A shingle that stands twice in a text stands twice here.
    """
    points, ends = _points(texts)
    kinds = _kinds()[points]
    inside = kinds > 0
    alone = kinds == 2
    # a word begins at a word character after none, and at each that stands alone, and after it
    begins = inside.copy()
    begins[1:] &= ~inside[:-1] | alone[1:] | alone[:-1]
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, np.uint64), np.zeros(len(texts) + 1, np.int64)
    closes = inside.copy()
    closes[:-1] &= ~inside[1:] | alone[:-1] | alone[1:]
    words = _word_hashes(points, starts, np.flatnonzero(closes) + 1)
    counts = np.diff(np.searchsorted(starts, ends), prepend=0)  # words of each text
    # all 3-grams in sight, then only those that stay within one text
    grams = words.copy()
    grams[:-1] += words[1:] * _TWO
    grams[:-2] += words[2:] * _THREE
    after = np.cumsum(counts)
    keep = np.ones(len(words), dtype=bool)
    for back in (1, 2):
        keep[(after - back)[counts >= back]] = False
    for short in (1, 2):  # fewer words than a 3-gram has: all of them are the shingle
        first = (after - counts)[counts == short]
        grams[first] = words[first] + (words[first + 1] * _TWO if short == 2 else np.uint64(0))
        keep[first] = True
    found = np.where(counts >= WORDS, counts - WORDS + 1, np.minimum(counts, 1))
    return mix(grams[keep]), np.concatenate([[0], np.cumsum(found)])


def _points(texts: Sequence[str]) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.int64]]:
    """Code points of the lower-cased texts, a zero after each; the index of that zero."""
    lower = [text.lower() for text in texts]
    ends = np.cumsum(np.fromiter(map(len, lower), np.int64, len(lower)) + 1) - 1
    joined = "\0".join([*lower, ""])
    try:
        return np.frombuffer(joined.encode("ascii"), np.uint8), ends
    except UnicodeEncodeError:
        return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4"), ends


def _word_hashes(
    points: NDArray[np.unsignedinteger[Any]], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """A polynomial in the word's characters, modulo 2^64: prefix sums, brought back to the word's beginning."""
    powers, inverses = _powers()
    sums = np.empty(len(points) + 1, np.uint64)
    sums[0] = 0
    for start in range(0, len(points), _STRETCH):
        stretch = sums[start + 1 : start + 1 + _STRETCH]
        np.multiply(points[start : start + _STRETCH], powers[: len(stretch)], out=stretch)
        if start:
            stretch *= np.uint64(pow(_MULTIPLIER, start, 1 << 64))
    np.cumsum(sums, out=sums)
    hashes = (sums[stops] - sums[starts]) * inverses[starts % _STRETCH]
    if len(points) > _STRETCH:
        far = [pow(_INVERSE, i * _STRETCH, 1 << 64) for i in range(len(points) // _STRETCH + 1)]
        hashes *= np.array(far, np.uint64)[starts // _STRETCH]
    return mix(hashes)


@cache
def _powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    both = []
    for base in (_MULTIPLIER, _INVERSE):
        table = np.full(_STRETCH, base, np.uint64)
        table[0] = 1
        both.append(np.cumprod(table, dtype=np.uint64))
    return both[0], both[1]


@cache
def _kinds() -> NDArray[np.uint8]:
    """Of each code point: 0 parts words, 1 belongs to a word, 2 is a word."""
    kinds = np.ones(0x110000, np.uint8)
    kinds[:0x80] = 0
    kinds[list(_ASCII_WORD)] = 1
    for value, ranges in ((0, _BETWEEN), (2, _ALONE)):
        for first, last in ranges:
            kinds[first : last + 1] = value
    return kinds
