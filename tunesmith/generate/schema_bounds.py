"""What llguidance can't take from a JSON schema without harm: refused before it sees it.

Measured with llguidance 1.9.1 on one core. Bounds of a whole number near -2^63 overflow its stack, which ends the
process; from 2^53 on it rounds whole numbers, and answers break the schema. The others take the thread that makes
grammars, and memory, for as long as a client likes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from tunesmith.errors import RecipeError

_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_EXACT = 2**53  # below it every whole number is a double
_STEPS = 100_000  # a state for each remainder: 100,000 take 2 s, 1,000,000 take 17 s and 400 MB
_PATTERN = 4096  # characters: 4,000 take 0.3 s, 40,000 take 9 s and 800 MB
_PATTERN_KEYS = 100  # held against each other: 100 take 0.3 s, 400 take 35 s


def require_bounded(schema: Mapping[str, Any], fix: str) -> None:
    """RecipeError for the first keyword that is beyond. `fix`: what to do instead."""
    if (
        "x-guidance" in schema
    ):  # llguidance's own switches: lenient takes no notice of keywords it doesn't know
        raise _refused("x-guidance is no keyword of JSON schema", fix)
    multiples: list[Decimal] = []
    pattern_keys = 0
    for key, value in _keywords(schema):
        if key in _NUMBERS and _is_number(value):
            if abs(value) >= _EXACT:
                raise _refused(f"{key} is not within ±2^53, where whole numbers are exact", fix)
            if key == "multipleOf" and value > 0:
                multiples.append(Decimal(repr(value)).normalize())
        if key in ("const", "enum") and not all(_is_exact(one) for one in _leaves(value)):
            raise _refused(f"{key} has a whole number beyond ±2^53: make it a string", fix)
        if key == "pattern" and isinstance(value, str) and len(value) > _PATTERN:
            raise _refused(f"a pattern has {len(value):,} characters, of at most {_PATTERN:,}", fix)
        if key == "patternProperties" and isinstance(value, Mapping):
            pattern_keys += len(value)
            if (longest := max(map(len, value), default=0)) > _PATTERN:
                raise _refused(f"a pattern has {longest:,} characters, of at most {_PATTERN:,}", fix)
    if pattern_keys > _PATTERN_KEYS:
        raise _refused(f"it has {pattern_keys:,} patternProperties, of at most {_PATTERN_KEYS}", fix)
    if _steps(multiples) > _STEPS:
        raise _refused(f"the common multiple of its multipleOf is more than {_STEPS:,} steps", fix)


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, wherever they stand: a reference may make a schema of anything."""
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            yield from one.items()
            left += one.values()
        elif isinstance(one, list):
            left += one


def _leaves(value: Any) -> Iterator[Any]:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list):
            left += one
        else:
            yield one


def _is_exact(value: Any) -> bool:
    return not isinstance(value, int) or abs(value) < _EXACT


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _steps(multiples: list[Decimal]) -> int:
    """Their least common multiple, in units of the finest one's last decimal place; allOf may join any of them."""
    places = max([0, *(-int(one.as_tuple().exponent) for one in multiples)])
    return math.lcm(*(int(one.scaleb(places)) for one in multiples))


def _refused(why: str, fix: str) -> RecipeError:
    return RecipeError(f"answers can't be held to this schema: {why}", where="data.schema", fix=fix)
