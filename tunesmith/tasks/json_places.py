"""Where in an answer the values of its JSON object stand, so that each can be given the tokens that wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


def value_spans(answer: str, value: Any) -> dict[str, tuple[int, int]]:
    """Field → [begin, end) of its value's characters, quotes included; nested ones by `outer.inner`.

    `value`: the object that the parser took from the answer (json_answer.py). Empty where it stands nowhere to the
    letter. Of a key that is given twice the last one counts, as in the parser.
    """
    begin = answer.find("{")
    while begin >= 0:
        try:
            found, _ = _DECODER.raw_decode(answer, begin)
        except (ValueError, RecursionError):
            found = None
        if found is not None and found == value:
            return _spans(answer, begin)
        begin = answer.find("{", begin + 1)
    return {}


def _spans(text: str, begin: int) -> dict[str, tuple[int, int]]:
    members = list(_members(text, begin))
    inner = {
        f"{key}.{name}": span
        for key, place, _ in members
        if text[place] == "{"
        for name, span in _spans(text, place).items()
    }
    return inner | {key: (place, end) for key, place, end in members}


def _members(text: str, begin: int) -> Iterator[tuple[str, int, int]]:
    """Keys of the object at `begin` with the places of their values."""
    place = _next(text, begin + 1)
    while text[place] == '"':
        key, place = _DECODER.raw_decode(text, place)
        place = _next(text, _next(text, place) + 1)  # behind the colon
        _, end = _DECODER.raw_decode(text, place)
        yield key, place, end
        place = _next(text, end)
        if text[place] == ",":
            place = _next(text, place + 1)


def _next(text: str, place: int) -> int:
    while text[place] in _SPACE:
        place += 1
    return place
