"""Bodies of requests: read as JSON, held to a model of types, and unknown or unanswerable keys refused by name."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Annotated, Any, TypeVar

import pydantic_core
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.serve.protocol import Unservable

_LARGE = 1 << 16  # bytes that are read beside the loop
_LARGE_POWER = re.compile(rb"[eE](?<=[0-9.].)\+?[0-9]{3}")
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 300
_MOST = 3  # problems of one request that are told

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


Item = TypeVar("Item")
Listed = Annotated[list[Item], Field(fail_fast=True)]
"""A list that is read up to its first wrong item: a report on each of a million would hold the loop for seconds."""


class Body(BaseModel):
    """Types are exact: "5" and true are no numbers, 5.0 is no whole one. What is not named lies in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


Kind = TypeVar("Kind", bound=Body)


async def read(request: Request, kind: type[Kind]) -> Kind:
    """The request's body. Unservable: no JSON (NaN and halves of surrogate pairs are none), no object, wrong types."""
    raw = await request.body()
    data = _parse(raw) if len(raw) < _LARGE else await asyncio.to_thread(_parse, raw)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _told(error) from None


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        data = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Unservable(f"the body is not JSON: {error}") from None
    if _maybe_infinite(raw):
        try:
            json.dumps(data, allow_nan=False)
        except ValueError:
            raise Unservable("the body is not JSON: a number is too large") from None
    if not isinstance(data, dict):
        raise Unservable("the body must be a JSON object")
    return data


def _maybe_infinite(raw: bytes) -> bool:
    """Whether a number in it may read as infinite (1e999, or hundreds of digits), which no schema may hold."""
    return _LARGE_POWER.search(raw) is not None or _LONG in raw.translate(_ZEROS)


def _told(error: ValidationError) -> Unservable:
    said: dict[str, list[str]] = {}
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        said.setdefault(_place(one["loc"]), []).append(one["msg"])
    lines = [f"{place}: {', or '.join(dict.fromkeys(why))}" for place, why in said.items()]
    more = f" (and {len(lines) - _MOST} more)" if len(lines) > _MOST else ""
    return Unservable("; ".join(lines[:_MOST]) + more, where=next(iter(said)))


def _place(pieces: tuple[int | str, ...]) -> str:
    """As the client would say it: where a value may be of several types, pydantic names the type too (`list[str]`)."""
    named = takewhile(lambda piece: piece != "str" and "[" not in str(piece), pieces)
    return ".".join(map(str, named))


def refuse_others(
    extra: Mapping[str, Any] | None,
    ignored: frozenset[str],
    harmless: Mapping[str, tuple[Any, ...]],
    within: str = "",
) -> None:
    """Unservable for the first key that would change the answer if it could be done.

    `ignored`: keys that never change an answer. `harmless`: keys that can't be done, and the values of them that ask
    for nothing. null asks for nothing everywhere.
    """
    for key, value in (extra or {}).items():
        name = f"{within}{key}"
        if value is None or key in ignored:
            continue
        if key not in harmless:
            raise Unservable(f"unknown parameter: {_short(name)}", where=_short(name))
        if not any(value == one and type(value) in _kinds(one) for one in harmless[key]):
            raise Unservable(f"{name} is not supported by this server", where=name)


def _kinds(value: object) -> tuple[type, ...]:
    return (int, float) if type(value) in (int, float) else (type(value),)  # true is not 1


def _short(name: str) -> str:
    return name if len(name) <= 80 else name[:77] + "..."
