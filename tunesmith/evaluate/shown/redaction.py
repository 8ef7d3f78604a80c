"""A report without texts of rows or answers, which may hold what nobody else may read: report.json itself is cut.

What stays is what the user named: ids of rows, names and values of slices, fields, types and systems; and counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_QUOTING = ("gold", "predicted", "answer", "text", "prompt", "examples", "quote", "quotes", "surface")


def redacted(content: Mapping[str, Any]) -> dict[str, Any]:
    """report.json's content with all that quotes rows or answers left out."""
    made = dict(content) | {"redacted": True}
    for key in ("tables", "studies"):
        made[key] = {
            system: [one for one in tables if not one.get("quotes")]
            for system, tables in content.get(key, {}).items()
        }
    if "faults" in content:
        made["faults"] = {system: _without(found) for system, found in content["faults"].items()}
    if "next" in content:
        made["next"] = [_without(one) for one in content["next"] if not one.get("quotes")]
    return made


def _without(value: Any) -> Any:
    """The same, without keys under which texts stand."""
    if isinstance(value, Mapping):
        return {key: _without(inner) for key, inner in value.items() if key not in _QUOTING}
    return [_without(inner) for inner in value] if isinstance(value, list) else value
