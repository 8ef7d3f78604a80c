"""Letters by script: which script a text is written in, and stray characters in it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

LEAST_LETTERS = 3
# first code point of each stretch; what is no letter or mark counts nowhere
_STRETCHES: tuple[tuple[int, str], ...] = (
    (0x0000, "Latin"), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"),
    (0x0600, "Arabic"), (0x0700, "other"), (0x0750, "Arabic"), (0x0780, "other"), (0x0860, "Arabic"),
    (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, "Gurmukhi"), (0x0A80, "Gujarati"), (0x0B00, "Odia"),
    (0x0B80, "Tamil"), (0x0C00, "Telugu"), (0x0C80, "Kannada"), (0x0D00, "Malayalam"), (0x0D80, "Sinhala"),
    (0x0E00, "Thai"), (0x0E80, "Lao"), (0x0F00, "Tibetan"), (0x1000, "Burmese"), (0x10A0, "Georgian"),
    (0x1100, "Hangul"), (0x1200, "Ethiopic"), (0x13A0, "other"), (0x1780, "Khmer"), (0x1800, "Mongolian"),
    (0x18B0, "other"), (0x1C80, "Cyrillic"), (0x1C90, "Georgian"), (0x1CC0, "other"), (0x1D00, "Latin"),
    (0x1F00, "Greek"), (0x2000, "Latin"), (0x2C00, "other"), (0x2C60, "Latin"), (0x2C80, "other"),
    (0x2DE0, "Cyrillic"), (0x2E80, "Han"), (0x3040, "Kana"), (0x3100, "other"), (0x3130, "Hangul"), (0x3190, "Han"),
    (0x31F0, "Kana"), (0x3200, "Han"), (0xA000, "other"), (0xA640, "Cyrillic"), (0xA6A0, "other"), (0xA720, "Latin"),
    (0xA800, "other"), (0xA8E0, "Devanagari"), (0xA900, "other"), (0xA960, "Hangul"), (0xA980, "other"),
    (0xAA60, "Burmese"), (0xAA80, "other"), (0xAB30, "Latin"), (0xAB70, "other"), (0xAC00, "Hangul"), (0xD7FF, "other"),
    (0xF900, "Han"), (0xFB00, "Latin"), (0xFB13, "Armenian"), (0xFB1D, "Hebrew"), (0xFB50, "Arabic"),
    (0xFE00, "other"), (0xFE70, "Arabic"), (0xFF00, "Latin"), (0xFF66, "Kana"), (0xFFA0, "Hangul"), (0xFFDD, "other"),
    (0x20000, "Han"), (0x32000, "other"),
)  # fmt: skip
NAMES = tuple(dict.fromkeys(name for _, name in _STRETCHES))
_TOP = 0x32000
_NOT_LATIN = bytes(point for point in range(128) if not chr(point).isalpha())
REPLACEMENT, ZERO_WIDTH = "\ufffd", ("\u200b", "\u200c", "\u200d", "\ufeff", "\u2060")


@cache
def _table() -> NDArray[np.uint8]:
    """Of each code point: the number of its script, 255 for what is no letter."""
    table = np.full(_TOP + 1, 255, np.uint8)
    ends = [first for first, _ in _STRETCHES[1:]] + [_TOP]
    for (first, name), end in zip(_STRETCHES, ends, strict=True):
        table[first:end] = NAMES.index(name)
    silent = [point for point in range(_TOP) if unicodedata.category(chr(point))[0] not in "LM"]
    table[silent] = 255
    combining = list(range(0x300, 0x370))  # accents belong to any script
    table[combining] = 255
    table[_TOP] = 255
    return table


def script_letters(text: str) -> dict[str, int]:
    """Letters (and vowel signs) of each script."""
    if text.isascii():
        letters = len(text.encode().translate(None, _NOT_LATIN))
        return {"Latin": letters} if letters else {}
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    counts = np.bincount(_table()[np.minimum(points, _TOP)], minlength=256)
    return {name: int(counts[number]) for number, name in enumerate(NAMES) if counts[number]}


def main_script(letters: Mapping[str, int]) -> str | None:
    """The script that most letters are of; None for a text of fewer than three letters."""
    if sum(letters.values()) < LEAST_LETTERS:
        return None
    return max(letters, key=letters.__getitem__)


def strays(text: str) -> Counter[str]:
    """Replacement characters, zero-width characters, and whether the text is not NFC. Nothing for ASCII."""
    found: Counter[str] = Counter()
    if text.isascii():
        return found
    if REPLACEMENT in text:
        found["replacement"] = text.count(REPLACEMENT)
    for character in ZERO_WIDTH:
        if character in text:
            found["zero_width"] += text.count(character)
    if not unicodedata.is_normalized("NFC", text):
        found["not_nfc"] = 1
    return found
