"""Answers field by field: against the schema, each beside the others, and beside a row's gold answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tunesmith.tasks.json_answer import read_object
from tunesmith.tasks.protocol import Detail
from tunesmith.tasks.schema import fields_of

_LONGEST = 400  # characters of a schema's complaint


class Problem(NamedTuple):
    """What is wrong with a field. Kind: missing, extra, type, enum or other."""

    kind: str
    words: str


class Read(NamedTuple):
    """An answer as JSON."""

    value: dict[str, Any] | None
    problems: list[str]
    """Of the answer as a whole."""
    fields: dict[str, Problem]


def read(answer: str, schema: Mapping[str, Any] | None) -> Read:
    """Reads an answer and checks it. `value` is None where there is no JSON object in it."""
    parsed = read_object(answer)
    if parsed.value is None:
        return Read(None, list(parsed.problems), {})
    whole = list(parsed.problems)
    fields = _problems(schema, parsed.value, whole) if schema is not None else {}
    return Read(parsed.value, whole, fields)


def field_table(
    answers: Sequence[Read],
    schema: Mapping[str, Any] | None,
    details: Sequence[Sequence[Detail]] = (),
) -> list[dict[str, Any]]:
    """A line for each field: its cell in every answer (None: that answer is no object), whether they differ, its gold.

    `details`: for each answer, the task's own judgement beside the gold answer.
    """
    judged = [{one.field: one for one in side} for side in details] or [{} for _ in answers]
    names = list(fields_of(schema)) if schema is not None else []
    for read_ in answers:
        names += _leaves(read_.value or {}, known=names)
        names += list(read_.fields)
    for side in judged:
        names += list(side)
    lines = []
    for name in dict.fromkeys(names):
        cells = [_cell(one, side.get(name), name) for one, side in zip(answers, judged, strict=True)]
        shown = [cell["value"] for cell in cells if cell is not None]
        gold = next((side[name].gold for side in judged if name in side), None)
        line: dict[str, Any] = {"field": name, "cells": cells, "differ": len(set(shown)) > 1}
        if any(name in side for side in judged):
            line["gold"] = gold
        lines.append(line)
    return lines


def _cell(one: Read, detail: Detail | None, name: str) -> dict[str, Any] | None:
    if one.value is None:
        return (
            None
            if detail is None
            else {"value": None, "problem": None, "words": "", "verdict": detail.verdict}
        )
    there, value = _at(one.value, name)
    problem = one.fields.get(name)
    return {
        "value": _shown(value) if there else None,
        "problem": problem.kind if problem else None,
        "words": problem.words if problem else "",
        "verdict": detail.verdict if detail else None,
    }


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _at(value: Any, name: str) -> tuple[bool, Any]:
    """Whether the answer has the field, and what stands there. A key may itself hold dots."""
    if not isinstance(value, Mapping):
        return False, None
    if name in value:
        return True, value[name]
    for key in value:
        if name.startswith(f"{key}."):
            there, found = _at(value[key], name[len(key) + 1 :])
            if there:
                return True, found
    return False, None


def _leaves(value: Mapping[str, Any], known: Sequence[str], before: str = "") -> list[str]:
    """Names of an answer's fields; inside objects only where the schema goes there too, or knows nothing."""
    made: list[str] = []
    for key, inner in value.items():
        name = f"{before}{key}"
        deeper = any(one.startswith(f"{name}.") for one in known) or (
            not known and isinstance(inner, Mapping)
        )
        if isinstance(inner, Mapping) and inner and deeper:
            made += _leaves(inner, known, f"{name}.")
        else:
            made.append(name)
    return made


def _problems(schema: Mapping[str, Any], value: Any, whole: list[str]) -> dict[str, Problem]:
    """By field; what belongs to none is added to `whole`."""
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # an empty registry: a $ref to a web address is an error, never a download
    validator = Draft202012Validator(schema, registry=Registry())
    made: dict[str, Problem] = {}
    try:
        errors = sorted(validator.iter_errors(value), key=lambda error: error.json_path)
    except Unresolvable as unknown:
        whole.append(f"schema: it refers to {unknown.ref!r}, which it does not hold")
        return made
    for error in errors:
        place = ".".join(str(step) for step in error.absolute_path if not isinstance(step, int))
        before = f"{place}." if place else ""
        if error.validator == "required" and isinstance(error.instance, Mapping):
            for key in error.validator_value:
                if key not in error.instance:
                    made.setdefault(f"{before}{key}", Problem("missing", "the schema wants this field"))
        elif error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
            known = (
                set((error.schema or {}).get("properties", {}))
                if isinstance(error.schema, Mapping)
                else set()
            )
            for key in error.instance:
                if key not in known:
                    made.setdefault(f"{before}{key}", Problem("extra", "the schema has no such field"))
        elif not place:
            whole.append(f"schema: {error.message[:_LONGEST]}")
        else:
            kind = {"type": "type", "enum": "enum", "const": "enum"}.get(str(error.validator), "other")
            made.setdefault(place, Problem(kind, _words(error)))
    return made


def _words(error: Any) -> str:
    if error.validator == "type":
        wanted = error.validator_value
        return f"has to be {wanted if isinstance(wanted, str) else ' or '.join(wanted)}"
    if error.validator == "enum":
        return f"has to be one of {', '.join(_shown(one) for one in error.validator_value)}"[:_LONGEST]
    return str(error.message)[:_LONGEST]
