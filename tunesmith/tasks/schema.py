"""The shape that answers must have: a JSON schema that is given, or one inferred from the training answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError

_MOST_PROBLEMS = 5  # of one answer that are listed


def load_schema(path: str | Path) -> dict[str, Any]:
    """The JSON schema in a file. TunesmithError when it can't be read, or is none."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TunesmithError(
            f"data.schema can't be read: {why}", where=str(path), fix="give the path of a JSON schema file"
        ) from error
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise TunesmithError(
            f"data.schema is not a JSON schema: {error.message}",
            where=f"{path}: {error.json_path}",
            fix="see json-schema.org (draft 2020-12)",
        ) from error
    if not isinstance(schema, dict):
        raise TunesmithError(
            "data.schema must be a JSON object", where=str(path), fix="give a schema with properties"
        )
    return schema


def infer_schema(golds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A schema that every training answer fits: all keys seen, each of the types seen or null, and nothing else.

    A key is required when every answer has it. Objects are described inside; elements of lists are not.
    """
    total, seen, types = 0, dict[str, int](), dict[str, set[str]]()
    inner: dict[str, list[Mapping[str, Any]]] = {}
    for gold in golds:
        total += 1
        for key, value in gold.items():
            seen[key] = seen.get(key, 0) + 1
            types.setdefault(key, set()).add(_type(value))
            if isinstance(value, Mapping):
                inner.setdefault(key, []).append(value)
    properties: dict[str, Any] = {}
    for key, kinds in types.items():
        known = kinds - {"null"}
        if "number" in known:
            known.discard("integer")  # 5 is a number too
        properties[key] = {"type": [*sorted(known), "null"]} if known else {}
        if key in inner:
            nested = infer_schema(inner[key])
            properties[key] |= {
                name: nested[name] for name in ("properties", "required", "additionalProperties")
            }
    return {
        "type": "object",
        "properties": properties,
        "required": [key for key, times in seen.items() if times == total],
        "additionalProperties": False,
    }


def _type(value: Any) -> str:
    if isinstance(value, bool):  # before int: True is one
        return "boolean"
    names = {dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return names.get(type(value), "null")


def fields_of(schema: Mapping[str, Any], before: str = "") -> list[str]:
    """Names of the fields that are scored: keys, and `outer.inner` for those of nested objects."""
    fields: list[str] = []
    for key, inner in schema.get("properties", {}).items():
        nested = isinstance(inner, Mapping) and inner.get("properties")
        fields += fields_of(inner, f"{before}{key}.") if nested else [f"{before}{key}"]
    return fields


class SchemaChecker:
    """Says what in an answer breaks the schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        from jsonschema import Draft202012Validator
        from referencing import Registry

        self._schema = schema
        # an empty registry: a $ref to a web address is an error, never a download
        self._validator = Draft202012Validator(schema, registry=Registry())

    def __reduce__(self) -> tuple[Any, ...]:
        return SchemaChecker, (self._schema,)  # the registry holds functions that can't be pickled

    def problems(self, value: Any) -> tuple[str, ...]:
        """`schema: …` lines, the first few; empty when the value fits."""
        if _surely_fits(self._schema, value):
            return ()
        from referencing.exceptions import Unresolvable

        try:
            found = sorted(self._validator.iter_errors(value), key=lambda error: error.json_path)
        except Unresolvable as error:
            raise TunesmithError(
                f"the schema refers to {error.ref!r}, which it does not hold",
                where="data.schema",
                fix="put the definition into the schema itself, under $defs",
            ) from error
        lines = [f"schema: {error.json_path.removeprefix('$.')}: {_short(error.message)}" for error in found]
        return tuple(lines[:_MOST_PROBLEMS])


_PLAIN = {"$schema", "title", "description", "type", "properties", "required", "additionalProperties"}


def _surely_fits(schema: Any, value: Any) -> bool:
    """Whether a value fits a schema of types and keys alone, such as `infer_schema` makes: most answers do, and the
    whole validator takes a hundred times as long. False decides nothing."""
    if not isinstance(schema, Mapping) or not schema.keys() <= _PLAIN:
        return False
    wanted = schema.get("type")
    if wanted is not None:
        kind = _type(value)
        listed = [wanted] if isinstance(wanted, str) else wanted
        if kind not in listed and not (kind == "integer" and "number" in listed):
            return False
    if not isinstance(value, dict):
        return True
    properties = schema.get("properties", {})
    if schema.get("additionalProperties", True) is not True and not value.keys() <= properties.keys():
        return False
    if not all(key in value for key in schema.get("required", ())):
        return False
    return all(_surely_fits(properties[key], one) for key, one in value.items() if key in properties)


def _short(message: str) -> str:
    return message if len(message) <= 160 else message[:157] + "..."
