"""Whether runs were scored on the same rows: paired statistics of other rows would be none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from tunesmith.errors import RowCheckFailed
from tunesmith.example import Example

_NAMED = 5  # rows that a message lists


def rows_sha256(examples: Sequence[Example]) -> str:
    """One hash of the scored rows, whatever their order: ids, prompts, gold answers and documents."""
    return hashlib.sha256(b"".join(sorted(map(_digest, examples)))).hexdigest()


def require_same_rows(name: str, rows: Sequence[Example], other: str, others: Sequence[Example]) -> None:
    """RowCheckFailed, which names what differs, where run `other` was scored on other rows than run `name`."""
    here, there = ({example.id: _digest(example) for example in side} for side in (rows, others))
    lacking, added = [id for id in here if id not in there], [id for id in there if id not in here]
    changed = [id for id in here if id in there and here[id] != there[id]]
    if not (lacking or added or changed):
        return
    found = [
        (lacking, f"only in {name}"),
        (added, f"only in {other}"),
        (changed, "in both, with another prompt, gold answer or document"),
    ]
    told = "; ".join(f"{len(ids)} {where} ({_names(ids)})" for ids, where in found if ids)
    raise RowCheckFailed(
        f"{name} and {other} were scored on other rows, so they can't be compared row by row: {told}",
        where=f"{name}: {len(here)} rows, sha256 {rows_sha256(rows)[:12]}; "
        f"{other}: {len(there)} rows, sha256 {rows_sha256(others)[:12]}",
        fix="score both on one file: the same data.test and evaluate.rows, then tunesmith evaluate RUN",
    )


def _digest(example: Example) -> bytes:
    turns = [(message.role, message.content) for message in example.prompt]
    row = [example.id, turns, example.answer, example.rejected, example.document or example.id]
    return hashlib.sha256(json.dumps(row).encode()).digest()


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
