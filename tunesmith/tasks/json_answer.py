"""Reads the JSON object in an answer: bare, or behind a code fence or a few words."""

from __future__ import annotations

import json
import math
import re
from sys import intern
from typing import Any

from tunesmith.tasks.protocol import Parsed

_FENCE = re.compile(r"```[A-Za-z]*\s*\n?(.*?)```", re.DOTALL)
_TRIES = 20  # bracketed phrases before the object that are looked into


def read_object(answer: str) -> Parsed:
    """The one JSON object of an answer.

    Problems: `wrapped` when something stood around it, `schema` for a key that is given twice, `unparsable` when there
    is none. An object inside a broken one is not taken: `{"a": {"b": 1}, "c": "tr` has lost its end.
    """
    bare = _load(answer.strip())
    if isinstance(bare, _Object):
        return Parsed(bare.plain(), bare.problems())
    for text, around in ((_inside_fence(answer), "a code fence"), (answer, "other text")):
        found = _first_object(text) if text is not None else None
        if found is not None:
            return Parsed(found.plain(), (f"wrapped: {around} around the object", *found.problems()))
    return Parsed(None, (f"unparsable: {_why(answer, bare)}",))


class _Object(dict[str, Any]):
    """A JSON object that remembers keys given twice."""

    twice: tuple[str, ...] = ()

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> _Object:
        made = cls(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            made.twice = tuple(sorted({key for key in keys if keys.count(key) > 1}))
        return made

    def plain(self) -> dict[str, Any]:
        return {intern(_writable(key)): _plain(value) for key, value in self.items()}  # rows share their keys

    def problems(self) -> tuple[str, ...]:
        return tuple(f"schema: key {key!r} is given twice" for key in self.twice)


def _plain(value: Any) -> Any:
    if isinstance(value, _Object):
        return value.plain()
    if isinstance(value, str):
        return _writable(value)
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _writable(text: str) -> str:
    """JSON can spell half a surrogate pair ("\\ud83d"), which no file takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _no_constant(number)  # 1e999 could not be written again


_DECODER = json.JSONDecoder(object_pairs_hook=_Object.of, parse_constant=_no_constant, parse_float=_finite)


class _Broken:
    """What the JSON parser said."""

    def __init__(self, why: str) -> None:
        self.why = why


def _load(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return _Broken(str(error))


def _inside_fence(answer: str) -> str | None:
    found = _FENCE.search(answer)
    return found.group(1) if found else None


def _first_object(text: str) -> _Object | None:
    """The first object that stands by itself; bracketed phrases before it are passed over as a whole."""
    begin = text.find("{")
    for _ in range(_TRIES):
        if begin < 0:
            return None
        try:
            found, _ = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError):
            end = _closing(text, begin)
            if end is None:
                return None  # cut off: whatever stands inside is only a part
            begin = text.find("{", end)
            continue
        if isinstance(found, _Object):
            return found
    return None


def opened_only(answer: str) -> bool:
    """Whether an object begins that never ends: the answer was cut, or lost its end."""
    begin = answer.find("{")
    return begin >= 0 and _closing(answer, begin) is None


def _closing(text: str, begin: int) -> int | None:
    """Where the bracket at `begin` is closed again, strings passed over; None when it never is."""
    depth, quoted, place = 0, False, begin
    while place < len(text):
        letter = text[place]
        if quoted:
            if letter == "\\":
                place += 1
            elif letter == '"':
                quoted = False
        elif letter == '"':
            quoted = True
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    return None


def _why(answer: str, bare: Any) -> str:
    if not answer.strip():
        return "the answer is empty"
    if not isinstance(bare, _Broken):
        return f"a JSON {type(bare).__name__}, not an object"
    return bare.why if "{" in answer else "no JSON object"
