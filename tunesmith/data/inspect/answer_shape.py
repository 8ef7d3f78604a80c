"""The shape of JSON answers: a schema that is given, or keys and types that nearly all answers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.tasks.schema import SchemaChecker

NEARLY_ALL = 0.99  # answers that have a key, where the rows leave out other keys too
ALWAYS = 0.93  # where they leave out no key on purpose
ODD = 0.03  # a type that so few values of a key have is none of its own; nor is a key of so few answers
LEAST = 20
_KEYWORDS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "title",
    "description",
    "$schema",
    "$id",
}
_MEMORY = 10_000
Shape = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class ShapeNorms:
    """Keys that nearly every answer has, and the types that each key's values have. Picklable."""

    objects: int = 0
    required: frozenset[str] = frozenset()
    types: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def learn(cls, values: Iterable[Mapping[str, Any]]) -> ShapeNorms:
        """From training answers; nested keys by `outer.inner`, their presence counted among their outer objects."""
        total, present, kinds, outer = 0, Counter[str](), Counter[tuple[str, str]](), Counter[str]()
        for value in values:
            total += 1
            for name, kind in _typed(shape_of(value)):
                kinds[name, kind] += 1
                present[name] += 1
                if kind == "object":
                    outer[f"{name}."] += 1
        if total < LEAST:
            return cls(total)
        shares = {name: times / outer.get(_outer(name), total) for name, times in present.items()}
        fixed = all(share >= ALWAYS for share in shares.values() if share > ODD)
        rare, enough = (ODD, ALWAYS) if fixed else (1 - NEARLY_ALL, NEARLY_ALL)
        known = {name for name, share in shares.items() if share > rare and present[name] > 1}
        types: dict[str, set[str]] = {}
        for (name, kind), times in kinds.items():
            if name in known and times > max(ODD * present[name], 1):
                types.setdefault(name, {"null"}).add(kind)
        required = {name for name in types if shares[name] >= enough}
        frozen = {name: frozenset(known) for name, known in types.items()}
        return cls(total, frozenset(required), frozen)

    def problem(self, shape: Shape) -> str | None:
        """What is unlike the others."""
        if not self.types:
            return None
        typed = _typed(shape)
        have = {name for name, _ in typed}
        objects = {f"{name}." for name, kind in typed if kind == "object"} | {""}
        missing = sorted(name for name in self.required - have if _outer(name) in objects)
        if missing:
            return f"the key {missing[0]!r} is missing, which nearly all answers have"
        for name, kind in typed:
            if name not in self.types:
                return f"the key {name!r} is not in the others"
            if kind not in self.types[name]:
                usual = " or ".join(sorted(self.types[name] - {"null"}) or ["null"])
                return f"{name!r} is of type {kind}, in the others {usual}"
        return None


class ShapeChecker:
    """Checks answers against the schema, else against the shape that the norms learned."""

    def __init__(self, norms: ShapeNorms, schema: Mapping[str, Any] | None) -> None:
        self._norms = norms
        self._checker = SchemaChecker(schema) if schema is not None else None
        self._by_shape = schema is None or _shape_alone(schema)
        self._fits: dict[Shape, bool] = {}

    def problem(self, value: Mapping[str, Any]) -> str | None:
        """The first thing that is wrong with the answer's shape."""
        if not self._by_shape:
            return self._validate(value)
        shape = shape_of(value)
        if self._fits.get(shape):
            return None
        found = self._validate(value) if self._checker else self._norms.problem(shape)
        if found is None and len(self._fits) < _MEMORY:
            self._fits[shape] = True  # what is wrong names the row's own value: never from another row
        return found

    def _validate(self, value: Mapping[str, Any]) -> str | None:
        problems = self._checker.problems(value) if self._checker else ()
        return problems[0].removeprefix("schema: ") if problems else None


def shape_of(value: Mapping[str, Any]) -> Shape:
    """Keys with the types of their values, nested objects inside. Hashable."""
    return tuple([(key, _kind(inner)) for key, inner in value.items()])


_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def _kind(value: Any) -> Any:
    name = _PLAIN.get(type(value))
    if name:
        return name
    if isinstance(value, dict):
        return ("object", shape_of(value))
    return ("array", tuple(sorted({str(_kind(element)) for element in value})))


def _typed(shape: Shape, before: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, kind in shape:
        name = f"{before}{key}"
        if isinstance(kind, str):
            found.append((name, "number" if kind == "integer" else kind))
        elif kind[0] == "array":
            found.append((name, "array"))
        else:
            found += [(name, "object"), *_typed(kind[1], f"{name}.")]
    return found


def _outer(name: str) -> str:
    return name[: name.rfind(".") + 1]


def _shape_alone(schema: Any) -> bool:
    """Whether the schema asks for nothing but keys and types: then answers of one shape are all right or all wrong."""
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    if not set(schema) <= _KEYWORDS or "integer" in schema.get("type", ()):  # 5.0 is an integer, 5.5 is none
        return False
    return all(map(_shape_alone, schema.get("properties", {}).values())) and _shape_alone(
        schema.get("additionalProperties", True)
    )
